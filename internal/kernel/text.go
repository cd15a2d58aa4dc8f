package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Decoders of the text that the kernel shows in sysfs. All refuse what the
// kernel does not write, and none keeps a part of a malformed value.

var errText = errors.New("malformed sysfs text")

func textError(what, s string) error {
	if len(s) > 64 {
		s = s[:64]
	}
	return fmt.Errorf("%w: %q is no %s", errText, s, what)
}

// hexGroups decodes n groups of exactly four hex digits between colons into
// 2n bytes in network order.
func hexGroups(p []byte, s string) bool {
	for i := 0; i < len(p); i += 2 {
		group := s
		if i+2 < len(p) {
			var more bool
			if group, s, more = strings.Cut(s, ":"); !more {
				return false
			}
		}
		if len(group) != 4 || strings.ContainsAny(group, "+-_") {
			return false
		}
		v, err := strconv.ParseUint(group, 16, 16)
		if err != nil {
			return false
		}
		binary.BigEndian.PutUint16(p[i:], uint16(v))
	}
	return true
}

// ParseGUID decodes a GUID: 5054:00ff:fe12:3456.
func ParseGUID(s string) (guid [8]byte, err error) {
	if !hexGroups(guid[:], s) {
		return [8]byte{}, textError("GUID", s)
	}
	return guid, nil
}

// ParseGID decodes a slot of ports/N/gids: eight groups, all written out.
func ParseGID(s string) (gid [16]byte, err error) {
	if !hexGroups(gid[:], s) {
		return [16]byte{}, textError("GID", s)
	}
	return gid, nil
}

// ParsePKey decodes a slot of ports/N/pkeys: 0xffff.
func ParsePKey(s string) (uint16, error) {
	digits, ok := strings.CutPrefix(s, "0x")
	v, err := strconv.ParseUint(digits, 16, 16)
	if !ok || err != nil {
		return 0, textError("P_Key", s)
	}
	return uint16(v), nil
}

// ParseDev decodes a device number: 231:192.
func ParseDev(s string) (major, minor uint32, err error) {
	a, b, ok := strings.Cut(s, ":")
	ma, err1 := strconv.ParseUint(a, 10, 32)
	mi, err2 := strconv.ParseUint(b, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, 0, textError("device number", s)
	}
	return uint32(ma), uint32(mi), nil
}

// ParseVersion decodes an abi_version: 6.
func ParseVersion(s string) (int, error) {
	v, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, textError("version", s)
	}
	return int(v), nil
}

// parseName checks that s can be a device's name, which becomes a part of
// paths and of messages.
func parseName(s string) (string, error) {
	ok := s != "" && len(s) <= 64 && s != "." && s != ".."
	for _, r := range s {
		ok = ok && r > ' ' && r < 0x7f && r != '/' && r != '\\'
	}
	if !ok {
		return "", textError("device name", s)
	}
	return s, nil
}
