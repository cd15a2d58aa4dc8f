package abi_test

import (
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/abi/abitest"
)

func TestMatchesKernelHeaders(t *testing.T) {
	const unnamed = "has no name in C"
	// within is the C type of a member that has none of its own.
	within := func(outer, member string) string { return "__typeof__(((struct " + outer + " *)0)->" + member + ")" }
	abitest.Run(t, abitest.Config{
		Headers: []string{"rdma/rdma_user_rxe.h"},
		C: map[string]string{
			"Rxe_wr_rdma":            within("rxe_send_wr", "wr.rdma"),
			"Rxe_wr_atomic":          within("rxe_send_wr", "wr.atomic"),
			"Rxe_wr_ud":              within("rxe_send_wr", "wr.ud"),
			"Rxe_wr_mw":              within("rxe_send_wr", "wr.mw"),
			"Rxe_sockaddr":           within("rxe_av", "sgid_addr"),
			"Rxe_sockaddr.Family":    "_sockaddr_in.sin_family",
			"Rxe_sockaddr.Port":      "_sockaddr_in.sin_port",
			"Rxe_sockaddr.Addr4":     "_sockaddr_in.sin_addr",
			"Rxe_sockaddr.Addr6":     "_sockaddr_in6.sin6_addr",
			"Rxe_sockaddr.Scope_id6": "_sockaddr_in6.sin6_scope_id",
		},
		Skip: map[string]string{"Rxe_global_route.Pad": unnamed},
	})
}
