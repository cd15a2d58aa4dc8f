package kernel

import (
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }
