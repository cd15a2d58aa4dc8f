//go:build !linux

package main

import "errors"

// mapPages is for Linux only: guests and their devices are.
func mapPages(int) ([]byte, func() error, error) { return nil, nil, errors.ErrUnsupported }
