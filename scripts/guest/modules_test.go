package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeModules is a set of modules and the function that reads them.
func fakeModules(depends map[string][]string) (*moduleSet, func(string) (*module, error)) {
	s := &moduleSet{paths: map[string]string{}, builtin: map[string]bool{"virtio": true}}
	for name := range depends {
		s.paths[name] = "/m/" + name + ".ko"
	}
	return s, func(p string) (*module, error) {
		name := moduleName(p)
		return &module{name: name, depends: depends[name]}, nil
	}
}

func TestModulesComeAfterWhatTheyDependOn(t *testing.T) {
	s, read := fakeModules(map[string][]string{
		"rdma_rxe": {"ib_uverbs", "ip6_udp_tunnel", "ib_core"}, "ib_uverbs": {"ib_core"}, "ib_core": nil,
		"ip6_udp_tunnel": {"virtio"}, "veth": nil,
	})
	list, err := s.order([]string{"crc32_generic?", "veth?", "rdma-rxe", "ib_core"}, read)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range list {
		got = append(got, m.name)
	}
	if want := []string{"veth", "ib_core", "ib_uverbs", "ip6_udp_tunnel", "rdma_rxe"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestModulesThatCannotBeHadAreNamed(t *testing.T) {
	s, read := fakeModules(map[string][]string{"a": {"b"}, "b": {"a"}, "c": {"gone"}, "bad": nil})
	readBad := func(p string) (*module, error) {
		if moduleName(p) == "bad" {
			return nil, errors.New("not an ELF file")
		}
		return read(p)
	}
	for want, says := range map[string]string{"a": "depends on itself", "c": "no module gone", "none": "no module none", "bad": "module bad: not an ELF"} {
		if _, err := s.order([]string{want}, readBad); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error %v, want %q", want, err, says)
		}
	}
}

func TestModulesAreFoundInATree(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"kernel/a/ib-core.ko": "", "kernel/b/veth.ko.xz": "", "kernel/b/zlib.ko.zst": "", "kernel/notes.txt": "",
		"modules.builtin": "kernel/virtio/virtio-ring.ko\nkernel/lib/crc32.ko\n",
	} {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := readModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.paths) != 3 || s.paths["ib_core"] == "" || s.paths["veth"] == "" || s.paths["zlib"] == "" {
		t.Errorf("modules %v", s.paths)
	}
	if len(s.builtin) != 2 || !s.builtin["virtio_ring"] || !s.builtin["crc32"] {
		t.Errorf("built in %v", s.builtin)
	}
	if _, err := readModule(s.paths["ib_core"]); err == nil {
		t.Error("an empty file is a module")
	}
}
