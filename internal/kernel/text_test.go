package kernel

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

var textSeeds = []string{
	"5054:00ff:fe12:3456", "fe80:0000:0000:0000:5054:00ff:fe12:3456", "0000:0000:0000:0000:0000:ffff:0a00:0005",
	"0xffff", "0x7fff", "231:192", "6", "mlx5_0", "rxe0", "RoCE v2", "IB/RoCE v1",
	"", ":", "0x", "0x10000", "-1", "+6", "1:2:3", "..", "a/b", "5054:00ff:fe12:345", "5054:00ff:fe12:34567", "5054:+0ff:fe12:3456",
	"5054:00ff:fe12:3456:", "4294967296:0", "2147483648", "0x_fff", "é",
}

// A decoder here takes text and returns it written anew, as the kernel would.
var decoders = map[string]func(string) (string, error){
	"GUID": func(s string) (string, error) {
		v, err := ParseGUID(s)
		return fmt.Sprintf("%x:%x:%x:%x", v[0:2], v[2:4], v[4:6], v[6:8]), err
	},
	"GID": func(s string) (string, error) {
		v, err := ParseGID(s)
		return fmt.Sprintf("%x:%x:%x:%x:%x:%x:%x:%x", v[0:2], v[2:4], v[4:6], v[6:8], v[8:10], v[10:12], v[12:14], v[14:]), err
	},
	"P_Key": func(s string) (string, error) {
		v, err := ParsePKey(s)
		return fmt.Sprintf("0x%04x", v), err
	},
	"dev": func(s string) (string, error) {
		a, b, err := ParseDev(s)
		return fmt.Sprintf("%d:%d", a, b), err
	},
	"version": func(s string) (string, error) {
		v, err := ParseVersion(s)
		return fmt.Sprint(v), err
	},
	"name": parseName,
}

func TestSysfsTextIsDecoded(t *testing.T) {
	accepted := map[string]string{
		"5054:00ff:fe12:3456":                     "GUID",
		"fe80:0000:0000:0000:5054:00ff:fe12:3456": "GID",
		"0xffff":  "P_Key",
		"231:192": "dev",
		"6":       "version",
		"mlx5_0":  "name",
	}
	for text, kind := range accepted {
		got, err := decoders[kind](text)
		if err != nil || got != text {
			t.Errorf("%s %q: %q, %v", kind, text, got, err)
		}
	}
}

func TestMalformedSysfsTextIsRefused(t *testing.T) {
	for kind, bad := range map[string][]string{
		"GUID":    {"", "5054", "5054:00ff:fe12", "5054:00ff:fe12:345", "5054:00ff:fe12:34567", "5054:00ff:fe12:3456:", "5054:+0ff:fe12:3456", "5054:00ff:fe12:345g", "505400fffe123456"},
		"GID":     {"", "fe80::1", "5054:00ff:fe12:3456"},
		"P_Key":   {"", "ffff", "0x", "0x10000", "0x_1", "-1"},
		"dev":     {"", "231", "231:", ":192", "1:2:3", "-1:0", "4294967296:0"},
		"version": {"", "-1", "+6", "6 ", "2147483648", "six"},
		"name":    {"", ".", "..", "a/b", `a\b`, "a b", "a\x00", "é", strings.Repeat("x", 65)},
	} {
		for _, text := range bad {
			if got, err := decoders[kind](text); !errors.Is(err, errText) {
				t.Errorf("%s %q: %q, %v; want an error", kind, text, got, err)
			}
		}
	}
}

func TestCutGUIDAndGIDAreRefusedAtEveryLength(t *testing.T) {
	for kind, text := range map[string]string{"GUID": "5054:00ff:fe12:3456", "GID": "fe80:0000:0000:0000:5054:00ff:fe12:3456"} {
		for n := range len(text) {
			if _, err := decoders[kind](text[:n]); err == nil {
				t.Errorf("%s %q is accepted", kind, text[:n])
			}
			if _, err := decoders[kind](text[n+1:]); err == nil {
				t.Errorf("%s %q is accepted", kind, text[n+1:])
			}
		}
	}
}

func FuzzSysfsText(f *testing.F) {
	for _, s := range textSeeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for kind, decode := range decoders {
			once, err := decode(s)
			if err != nil {
				continue
			}
			// What is accepted must come back as itself when written anew.
			if twice, err := decode(once); err != nil || twice != once {
				t.Errorf("%s %q is written as %q, which decodes to %q, %v", kind, s, once, twice, err)
			}
			if (kind == "GUID" || kind == "GID" || kind == "name") && !strings.EqualFold(once, s) {
				t.Errorf("%s %q is taken for %q", kind, s, once)
			}
		}
	})
}
