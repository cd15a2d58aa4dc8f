package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// pack writes an initramfs.
func pack(args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("pack", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("o", "", "`file` to write, an uncompressed cpio archive")
	initFile := flags.String("init", "", "the guest's /init: this `program`, built for linux")
	modules := flags.String("modules", "", "`directory` of the kernel's modules, as /lib/modules/VERSION")
	want := flags.String("load", "", "`names` of the modules to load, with spaces between; those that end in ? may be missing")
	root := flags.String("root", "", "`directory` in which Debian packages were unpacked")
	progs := flags.String("programs", "", "`names` of programs in -root, with spaces between; they go to /bin, their libraries with them")
	rootFiles := flags.String("root-files", "", "`paths` of other files in -root, with spaces between")
	tree := flags.String("tree", "", "`directory` whose content goes to the guest's root")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" || *initFile == "" || *modules == "" || *root == "" || *tree == "" || flags.NArg() > 0 {
		return fmt.Errorf("pack wants -o, -init, -modules, -root and -tree, and no argument beside")
	}

	f, err := os.Create(*out)
	if err != nil {
		return err
	}
	defer f.Close()
	buffered := bufio.NewWriterSize(f, 1<<20)
	a := newArchive(buffered)
	for _, dir := range []string{"dev", "proc", "sys", "tmp", "run", "root", "sbin"} {
		a.mkdir(dir)
	}
	// The kernel opens the console for /init before anything is mounted.
	a.add("dev/console", modeChar|0o600, nil, 5, 1)
	a.addHostFile("init", *initFile)
	if err := packModules(a, *modules, strings.Fields(*want)); err != nil {
		return err
	}
	if err := packPrograms(a, *root, strings.Fields(*progs), strings.Fields(*rootFiles)); err != nil {
		return err
	}
	if err := packTree(a, *tree); err != nil {
		return err
	}
	if err := a.close(); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// moduleList names the modules in the order of loading, one per line.
const moduleList = "/modules/order"

func packModules(a *archive, dir string, want []string) error {
	set, err := readModules(dir)
	if err != nil {
		return err
	}
	list, err := set.order(want, readModule)
	if err != nil {
		return err
	}
	var order strings.Builder
	for _, m := range list {
		a.add("modules/"+m.name+".ko", modeFile|0o644, m.data, 0, 0)
		fmt.Fprintln(&order, m.name)
	}
	a.add(moduleList, modeFile|0o644, []byte(order.String()), 0, 0)
	return nil
}

func packPrograms(a *archive, root string, names, files []string) error {
	p := &programs{root: root, files: map[string]string{}}
	for _, name := range names {
		if err := p.add(name); err != nil {
			return err
		}
	}
	for _, name := range files {
		if err := p.addFile(name); err != nil {
			return err
		}
	}
	for _, guest := range slices.Sorted(maps.Keys(p.files)) {
		a.addHostFile(guest, p.files[guest])
	}
	return nil
}

func packTree(a *archive, dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		name := path.Clean(filepath.ToSlash(rel))
		switch {
		case d.IsDir():
			a.mkdir(name)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			a.add(name, modeSymlink|0o777, []byte(target), 0, 0)
		default:
			a.addHostFile(name, p)
		}
		return a.err
	})
}

// addHostFile adds a regular file; whether it is executable is taken over.
func (a *archive) addHostFile(name, host string) {
	if a.err != nil {
		return
	}
	st, err := os.Stat(host)
	if err != nil {
		a.err = err
		return
	}
	data, err := os.ReadFile(host)
	if err != nil {
		a.err = err
		return
	}
	mode := uint32(0o644)
	if st.Mode()&0o111 != 0 {
		mode = 0o755
	}
	a.add(name, modeFile|mode, data, 0, 0)
}
