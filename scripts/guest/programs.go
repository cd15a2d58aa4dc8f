package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// libDir is where the guest's loader looks for shared libraries.
const libDir = "/lib/x86_64-linux-gnu"

// programs collects programs of a Debian root file system and the shared
// libraries that they need. Files are named as in the guest.
type programs struct {
	root  string
	files map[string]string // guest's path to host's path
}

// find returns the host's path of the first of the names below the root. Links
// are followed below the root, because an absolute one would lead to the host's.
func (p *programs) find(names ...string) (string, error) {
	for _, name := range names {
		for range 8 {
			full := filepath.Join(p.root, name)
			st, err := os.Lstat(full)
			if errors.Is(err, fs.ErrNotExist) {
				break
			}
			if err != nil {
				return "", err
			}
			if st.Mode()&fs.ModeSymlink == 0 {
				return full, nil
			}
			target, err := os.Readlink(full)
			if err != nil {
				return "", err
			}
			if !filepath.IsAbs(target) {
				target = filepath.Join(filepath.Dir(name), target)
			}
			name = target
		}
	}
	return "", fmt.Errorf("none of %v in %s: %w", names, p.root, fs.ErrNotExist)
}

// add adds the program of that name as /bin/NAME.
func (p *programs) add(name string) error {
	full, err := p.find("usr/bin/"+name, "usr/sbin/"+name, "bin/"+name, "sbin/"+name)
	if err != nil {
		return err
	}
	return p.addELF("/bin/"+name, full)
}

// addFile adds a file of the root where it is, with the libraries that it needs
// if it is a library itself.
func (p *programs) addFile(name string) error {
	full, err := p.find(name)
	if err != nil {
		return err
	}
	return p.addELF("/"+name, full)
}

func (p *programs) addELF(guest, host string) error {
	if _, ok := p.files[guest]; ok {
		return nil
	}
	p.files[guest] = host
	data, err := os.ReadFile(host)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
		return nil // a script, or data
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("%s: %w", host, err)
	}
	for _, prog := range f.Progs {
		if prog.Type != elf.PT_INTERP {
			continue
		}
		text := make([]byte, prog.Filesz)
		if _, err := prog.ReadAt(text, 0); err != nil {
			return err
		}
		interp := string(text[:max(0, len(text)-1)]) // without its NUL
		loader, err := p.find(interp, libDir+"/"+filepath.Base(interp), "usr"+libDir+"/"+filepath.Base(interp))
		if err != nil {
			return fmt.Errorf("%s: %w", guest, err)
		}
		p.files[interp] = loader
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, lib := range libs {
		full, err := p.find(libDir+"/"+lib, "usr"+libDir+"/"+lib, "lib64/"+lib)
		if err != nil {
			return fmt.Errorf("%s: %w", guest, err)
		}
		if err := p.addELF(libDir+"/"+lib, full); err != nil {
			return err
		}
	}
	return nil
}
