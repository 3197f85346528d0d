// SPDX-License-Identifier: Apache-2.0

// What the node, the shim and the creator agree on.

#define SHIM_VARIABLE "_SKEP_SHIM" // "<flags> <max log size> <max log files> <clients>"

enum {
	SHIM_TTY = 1,
	SHIM_STDIN = 2,
	SHIM_LOG = 4,
	SHIM_LISTEN = 8,
	SHIM_MOUNTS = 16, // the creator gets a mount namespace of its own
};

// Files of the shim as it starts.
enum { FD_RUN = 3, FD_LOG, FD_LISTEN, FD_JOB, FD_SYNC, FD_CLIENT };

// Files of the creator. Those of the container's stdio are not there with a terminal.
enum { CREATOR_STDIN = 3, CREATOR_STDOUT, CREATOR_STDERR, CREATOR_JOB, CREATOR_SYNC, CREATOR_CONSOLE };

enum {
	PKT_HELLO = 'h', // then a byte of WANT_ bits
	PKT_STDIN = 'i',
	PKT_CLOSE = 'c', // no more stdin
	PKT_SIZE = 'w',  // rows and columns, 16 bits each, big endian
	PKT_STDOUT = 'o',
	PKT_STDERR = 'e',
	PKT_EXIT = 'x',  // then what the file "exit" says; the last packet
};

enum { WANT_STDOUT = 1, WANT_STDERR = 2, WANT_CLOSE = 4 /* stdin ends with this client */ };

extern int skep_creator;
void skep_init_door(void);
