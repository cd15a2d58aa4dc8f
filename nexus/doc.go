// Package nexus is session management: one UDP socket per process, over which
// processes open connections to each other's endpoints, close them, and notice
// that the other process has died or restarted. It moves no data; the payloads
// of Connect and of its answer are the RPC engine's own and say how to reach
// its queues.
//
// # Messages
//
// Every message is one datagram of at most 1064 bytes, so that it fits any path
// without fragments and leaves room for what authentication will add below
// 1200. Integers are big-endian.
//
//	offset size
//	     0    4  magic "RRPN"
//	     4    1  version, 1
//	     5    1  kind
//	     6    2  flags: bit 0, the sender is the accepting side of the connection;
//	             the others are zero, and a message with one that is not
//	             understood is dropped
//	     8    8  incarnation of the sender: random, not zero, new with each Nexus
//	    16    8  incarnation of the receiver as the sender knows it; 0: unknown
//	    24    8  connection id, random, chosen by the client; in Ping, Pong and
//	             Reset a random number that the answer repeats
//	    32    2  endpoint id (Connect; 0 elsewhere)
//	    34    2  reason (Refuse; 0 elsewhere)
//	    36    2  payload length, at most 1024
//	    38    2  zero
//	    40       payload
//
// The first 40 bytes are the same in all versions, so that a Refuse with the
// reason "version" can always be read.
//
//	kind             from     payload
//	1 Connect        client   the caller's
//	2 Accept         server   the acceptor's reply
//	3 Refuse         server   text, UTF-8, at most 200 bytes
//	4 Disconnect     either   none
//	5 DisconnectAck  either   none
//	6 Ping           either   ids of connections that the sender has with the receiver
//	7 Pong           either   those of them that the receiver does not have
//	8 Reset          either   none: the Ping was for another incarnation
//
// Connect and Disconnect are sent again until answered, and may be lost, doubled
// and reordered at will: a Connect that has been accepted or refused before is
// answered as before, without asking the acceptor again, and is remembered for a
// while after the end of its connection.
//
// # Liveness
//
// However many connections there are to a process, it is one [Peer] with one
// stream of Pings, which flows only while there is a connection and while the
// data path has not heard from the peer anyway ([Peer.Touch]). A peer not heard
// of for the timeout is dead: its connections go down with [ErrPeerDead]. Pings
// also name the connections, a few at a time, so that one whose other half is
// gone (given up, or ended with its Disconnects lost) ends too.
//
// # What a stranger can do
//
// Nothing is authenticated yet: anybody who can reach the port can open
// connections, and who can read the traffic can end them. Who can only send,
// under any source address, cannot harm a connection. Incarnations are no
// secret (any answer contains one), hence:
//   - Accept, Refuse, Disconnect and DisconnectAck count only with the
//     connection id, 64 random bits that only the two ends have seen;
//   - Pong and Reset count only with the random number of a recent Ping, so a
//     dead peer cannot be kept alive, nor a live one declared restarted;
//   - a message from a peer's address with a new incarnation ends nothing. It
//     only makes us ping the old incarnation at once; if that is really gone,
//     the new one says Reset.
//   - No answer is sent to more than one address per message received, and only
//     Accept, which a forged Connect can request in somebody else's name, can be
//     longer than its request, by at most 1024 bytes.
//
// # Concurrency
//
// All methods of all types are safe for concurrent use. Callbacks run on the
// Nexus' own goroutines, without locks, and must not block: they hold up every
// other connection.
package nexus
