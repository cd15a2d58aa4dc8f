//go:build !linux

package mlx5sim

// openLink binds the UDP link of d.
func openLink(d *Device) (link, error) {
	l, err := openNetLink(d)
	if err != nil {
		return nil, err
	}
	return l, nil
}
