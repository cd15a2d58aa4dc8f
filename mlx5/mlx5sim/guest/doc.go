// Package guest runs unmodified libibverbs programs against simulated ConnectX
// devices.
package guest
