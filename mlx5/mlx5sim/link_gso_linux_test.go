package mlx5sim

import (
	"syscall"
	"time"
)

func setGSO(l link, on bool) { l.(*udpLink).gso = on }

// cpuTime is what the process has used so far.
func cpuTime() time.Duration {
	var ru syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &ru) // cannot fail
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}
