package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A module is one kernel module, unpacked.
type module struct {
	name    string
	depends []string
	data    []byte
}

// moduleSet finds the modules of one kernel.
type moduleSet struct {
	paths   map[string]string // by name
	builtin map[string]bool   // part of the kernel's image
}

// readModules lists the modules below dir, a /lib/modules/VERSION.
func readModules(dir string) (*moduleSet, error) {
	s := &moduleSet{paths: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && isModule(p) {
			s.paths[moduleName(p)] = p
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(list)) {
		s.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return s, nil
}

func isModule(p string) bool {
	return strings.HasSuffix(p, ".ko") || strings.HasSuffix(p, ".ko.xz") || strings.HasSuffix(p, ".ko.zst")
}

// moduleName returns the name by which the kernel knows the module in file p.
func moduleName(p string) string {
	name, _, _ := strings.Cut(filepath.Base(p), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// order returns the wanted modules and everything that they depend on, each
// after what it depends on. A name that ends in "?" may be missing.
func (s *moduleSet) order(want []string, read func(path string) (*module, error)) ([]*module, error) {
	var list []*module
	state := map[string]int{} // 1 while its dependencies are added, 2 when it is on the list
	var add func(name string) error
	add = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if s.builtin[name] || state[name] == 2 {
			return nil
		}
		p, ok := s.paths[name]
		if !ok {
			return fmt.Errorf("this kernel has no module %s", name)
		}
		if state[name] == 1 {
			return fmt.Errorf("module %s depends on itself", name)
		}
		state[name] = 1
		m, err := read(p)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, d := range m.depends {
			if err := add(d); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		state[name] = 2
		list = append(list, m)
		return nil
	}
	for _, name := range want {
		name, optional := strings.CutSuffix(name, "?")
		if optional && s.paths[strings.ReplaceAll(name, "-", "_")] == "" {
			continue
		}
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// readModule reads and unpacks a module, and finds what it depends on. The
// kernel could unpack some formats by itself, but not every kernel that has
// such modules is built to.
func readModule(p string) (*module, error) {
	var data []byte
	var err error
	switch filepath.Ext(p) {
	case ".xz":
		data, err = exec.Command("xz", "-dc", p).Output()
	case ".zst":
		data, err = exec.Command("zstd", "-dcq", p).Output()
	default:
		data, err = os.ReadFile(p)
	}
	if err != nil {
		return nil, err
	}
	depends, err := moduleDepends(data)
	return &module{name: moduleName(p), depends: depends, data: data}, err
}

// moduleDepends reads "depends=" in a module's .modinfo section: "key=value"
// texts, each ended by NUL.
func moduleDepends(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for text := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(text, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
