// Package nexus is session management: one UDP socket per process, over which
// processes open connections to each other's endpoints, close them, and notice
// that the other process has died or restarted. It moves no data; the payloads
// of Connect and of its answer are the RPC engine's own and say how to reach
// its queues.
//
// # Messages
//
// Every message is one datagram of at most 1064 bytes in clear and 1124 sealed,
// so that it fits any path without fragments. Integers are big-endian.
//
//	offset size
//	     0    4  magic "RRPN"
//	     4    1  version, 1
//	     5    1  kind
//	     6    2  flags: bit 0, the sender is the accepting side of the connection;
//	             bit 1, the message is sealed; the others are zero, and a
//	             message with one that is not understood is dropped
//	     8    8  incarnation of the sender: random, not zero, new with each Nexus
//	    16    8  incarnation of the receiver as the sender knows it; 0: unknown
//	    24    8  connection id, random, chosen by the client; in Ping, Pong and
//	             Reset a random number that the answer repeats
//	    32    2  endpoint id (Connect; 0 elsewhere)
//	    34    2  reason (Refuse; 0 elsewhere)
//	    36    2  payload length, at most 1024, and 1056 of a sealed Connect
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
//	9 Challenge      server   32 bytes for the client to return; only sealed
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
// data path has not heard from the peer anyway ([Peer.Touch]). A peer that leaves
// one without an answer gets more of them, and one that is not heard of for the
// timeout, 500 ms, is dead: its connections go down with [ErrPeerDead]. Pings
// also name the connections, a few at a time, so that one whose other half is
// gone (given up, or ended with its Disconnects lost) ends too.
//
// # The key
//
// A Nexus made [WithKey] sends its messages sealed, and takes only those that are
// sealed with the same secret. The header, with the length of the payload itself,
// is followed by
//
//	offset size
//	    40    4  random, new with each Nexus
//	    44    8  counter, 1 in the Nexus' first message, then one more in each
//	    52       payload, encrypted
//	           16  tag
//
// by AES-256-GCM, with the header as additional data and the bytes 40 to 51 as
// the nonce. The key is the sender's own: HKDF-SHA-256 of the secret, with the
// salt "rrppcc nexus" and the info "message" and the incarnation (8 bytes). No
// nonce is used twice under it, and a message that is sent again is sealed again.
//
// The payload of a sealed Connect begins with a cookie of 32 bytes. A Connect to
// no incarnation or to an earlier one, or from a process that the server has no
// connection with at that address and without a good cookie, is answered with a
// Challenge, of which the server remembers nothing: a time and an HMAC of the
// time, the client's incarnation and address and the connection id. The client
// sends the Connect again, to the incarnation that the Challenge came from and
// with that cookie, which is good for 10 s. Only now does it contain the caller's
// payload.
//
// Of each incarnation that it has to do with, and for 30 s after, the receiver
// remembers the counters that it has had, the last 4032 exactly; a message counts
// once, and an older one not at all.
//
// Where a common key is missing, a Connect is answered in clear with a Refuse of
// the reason "key". A client without a key believes it, as all else. One with a
// key takes it for a hint, since anybody can have sent it: it goes on asking, and
// believes it if there is no better answer within 2 s.
//
// # What a stranger can do
//
// Without a key, nothing is authenticated: anybody who can reach the port can
// open connections, and who can read the traffic can end them. Who can only send,
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
//     Accept and Refuse, which a forged Connect can request in somebody else's
//     name, can be longer than their request, by at most 1024 bytes.
//
// With a key, who does not have it may read all traffic and send what he likes,
// made up, changed or recorded, to whom he likes, under any address and before
// the original arrives. He cannot open a connection, end one, keep a dead peer
// alive, have anything remembered, or read payloads. Hence, beyond the above:
//   - a Connect that was recorded, or that is sent on from another address, gets a
//     Challenge at most; its answer would have to come from the client;
//   - a message to another incarnation of ours is answered (a Connect with a
//     Challenge, a Ping with a Reset), but changes nothing;
//   - a Reset, which a Ping that was led to a third process would cause, is
//     believed only when the peer has not answered for another three heartbeat
//     intervals. So a restart is noticed a little later than without a key;
//   - a question (Connect, Ping, Disconnect) from an address that is not its
//     sender's is answered there, but the sender's own is answered too;
//   - our own messages that are led back to us count only if we have asked to be
//     connected to our own address;
//   - he gets no answer that is longer than his message.
//
// What is left to him: he sees who talks to whom, when and how much, for the
// headers are in clear. If he can also hold datagrams back, he can end connections
// by silence. If he stands between a client and its server, or is faster than the
// client, he can pass a new connection's messages on as a NAT does, and be silent
// later; or lead a new connection to another process that has the key, because
// the secret says that a process belongs to the group, and not which one it is.
// Who learns the secret can do everything, and read what he has recorded before.
// The data path is not sealed.
//
// # Concurrency
//
// All methods of all types are safe for concurrent use. Callbacks run on the
// Nexus' own goroutines, without locks, and must not block: they hold up every
// other connection.
package nexus
