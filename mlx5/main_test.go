package mlx5

import (
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }
