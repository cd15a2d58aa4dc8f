//go:build !race

package nexus

const raceBuild = false
