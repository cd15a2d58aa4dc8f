// Package rpcprom gives the counters of endpoints and session managers to
// Prometheus. It is a module of its own, so that the library itself depends on
// nothing.
//
//	prometheus.MustRegister(rpcprom.Endpoint(ep), rpcprom.Nexus(nx))
//
// Every metric's name begins with rrpc_ and is otherwise that of the counter in
// rpc.Stats or nexus.Stats: TxDatagrams is rrpc_tx_datagrams_total, and Sessions,
// which is no counter, rrpc_sessions. Endpoints are told apart by the labels
// process, the URI of their process, and endpoint, their number.
//
// Scraping reads the counters between two turns of the endpoint's loop, and takes
// no turn itself. An endpoint that does not answer within a second, or is closed,
// has rrpc_up 0 and nothing else.
package rpcprom
