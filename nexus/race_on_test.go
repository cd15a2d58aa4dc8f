//go:build race

package nexus

const raceBuild = true
