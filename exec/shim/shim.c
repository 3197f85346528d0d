// SPDX-License-Identifier: Apache-2.0

// The shim: a container's parent. This runs from a constructor, before the Go
// runtime starts, and the parent never returns from it.
//
// Two processes come out of it. The child goes on into Go as the creator: it
// makes the container, writes its process ID to the file "pid" in the run
// directory, and exits. The parent is a subreaper, so the container becomes its
// child then, never before "pid" exists. It copies the container's output to
// the log and to attached clients, and writes the exit status to "exit".
//
// setenv and unsetenv are never called here: Go reads the original block.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

enum {
	CHUNK = 16384,        // output is read, and stdin is taken, by this much
	CLIENTS = 16,         // attached at the same time
	DRAIN_MS = 2000,      // how long output may come after the container ended
	PIPE_BYTES = 1 << 16, // what a pipe may still hold after that
};

int skep_creator;

// A client is an attached end of the node. Packets are one letter and data.
struct client {
	int fd;      // -1: free
	int want;    // WANT_ bits
	int behind;  // has not got the chunk yet
	int owed;    // has not got the exit status yet
	size_t off, len; // stdin that the container has not taken yet, in buf
	int closing; // close stdin when that is taken
	char buf[1 + CHUNK];
};

static struct {
	int flags;
	long max_size;
	int max_files;
	int sigfd, console;
	int in, out[2]; // stdin's write end, or the terminal; stdout, stderr
	int log;
	long log_size;
	pid_t creator;
	int ended, announced;
	int64_t deadline;
	long budget;
	struct winsize size;
	char exit[128]; // what "exit" says
	size_t exit_len;
} s;

static struct client clients[CLIENTS];

// The one chunk of output on its way. None is read while a client is behind:
// that is how a slow reader slows the container down.
static char chunk[1 + CHUNK];
static size_t chunk_len;

static struct {
	char text[CHUNK];
	size_t len;
} lines[2];

static char batch[4 * CHUNK]; // whole log lines, written at once
static size_t batch_len;

static int64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void shut(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

// ---- log

static void log_open(void)
{
	struct stat st;
	s.log = openat(FD_LOG, "log", O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	s.log_size = s.log >= 0 && fstat(s.log, &st) == 0 ? st.st_size : 0;
}

static void log_rotate(void)
{
	char from[16], to[16];
	shut(&s.log);
	for (int i = s.max_files - 2; i >= 0; i--) {
		snprintf(from, sizeof from, i ? "log.%d" : "log", i);
		snprintf(to, sizeof to, "log.%d", i + 1);
		renameat(FD_LOG, from, FD_LOG, to);
	}
	if (s.max_files <= 1)
		unlinkat(FD_LOG, "log", 0);
	log_open();
}

static void log_write(void)
{
	if (s.max_size > 0 && s.log_size > 0 && s.log_size + (long)batch_len > s.max_size)
		log_rotate();
	// What a full disk does not take is lost; the container goes on.
	for (size_t done = 0; s.log >= 0 && done < batch_len;) {
		ssize_t n = write(s.log, batch + done, batch_len - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += n;
		s.log_size += n;
	}
	batch_len = 0;
}

// log_line ends a line; whole is 0 if the text goes on in the next one.
static void log_line(int stream, int whole)
{
	char head[64];
	struct timespec t;
	struct tm tm;
	clock_gettime(CLOCK_REALTIME, &t);
	gmtime_r(&t.tv_sec, &tm);
	size_t n = strftime(head, sizeof head, "%Y-%m-%dT%H:%M:%S", &tm);
	n += snprintf(head + n, sizeof head - n, ".%09ldZ %s %c ", t.tv_nsec,
		      stream ? "stderr" : "stdout", whole ? 'F' : 'P');
	if (batch_len + n + lines[stream].len + 1 > sizeof batch)
		log_write();
	memcpy(batch + batch_len, head, n);
	memcpy(batch + batch_len + n, lines[stream].text, lines[stream].len);
	batch_len += n + lines[stream].len;
	batch[batch_len++] = '\n';
	lines[stream].len = 0;
}

static void log_text(int stream, const char *p, size_t n)
{
	if (!(s.flags & SHIM_LOG))
		return;
	while (n > 0) {
		const char *nl = memchr(p, '\n', n);
		size_t room = CHUNK - lines[stream].len;
		size_t take = nl ? (size_t)(nl - p) : n;
		if (take > room) {
			take = room;
			nl = NULL;
		}
		memcpy(lines[stream].text + lines[stream].len, p, take);
		lines[stream].len += take;
		p += take;
		n -= take;
		if (nl) {
			log_line(stream, 1);
			p++;
			n--;
		} else if (lines[stream].len == CHUNK && n > 0) {
			log_line(stream, 0);
		}
	}
	log_write();
}

// ---- clients

static void client_add(int fd)
{
	for (int i = 0; i < CLIENTS; i++) {
		struct client *c = &clients[i];
		if (c->fd >= 0)
			continue;
		c->fd = fd;
		c->want = c->behind = c->owed = c->closing = 0;
		c->off = c->len = 0;
		return;
	}
	close(fd);
}

static void client_drop(struct client *c)
{
	if ((c->want & WANT_CLOSE) && !(s.flags & SHIM_TTY))
		shut(&s.in);
	shut(&c->fd);
	c->behind = c->owed = 0;
	c->len = c->off = 0;
}

// client_send tries once; *due stays set if the client's socket is full.
static void client_send(struct client *c, int *due, const char *p, size_t n)
{
	*due = 0;
	if (send(c->fd, p, n, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		return;
	if (errno == EAGAIN || errno == EINTR || errno == ENOBUFS)
		*due = 1;
	else
		client_drop(c);
}

static int clients_due(void)
{
	int n = 0;
	for (int i = 0; i < CLIENTS; i++)
		n += clients[i].fd >= 0 && (clients[i].behind || clients[i].owed);
	return n;
}

static int clients_behind(void)
{
	int n = 0;
	for (int i = 0; i < CLIENTS; i++)
		n += clients[i].fd >= 0 && clients[i].behind;
	return n;
}

static void stdin_flush(struct client *c)
{
	while (c->off < c->len) {
		if (s.in < 0 && s.console >= 0)
			return; // the terminal is yet to come
		if (s.in < 0) {
			c->off = c->len;
			break;
		}
		ssize_t n = write(s.in, c->buf + c->off, c->len - c->off);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			if (!(s.flags & SHIM_TTY))
				shut(&s.in);
			c->off = c->len;
			break;
		}
		c->off += n;
	}
	c->off = c->len = 0;
}

static void resize(void)
{
	if ((s.flags & SHIM_TTY) && s.in >= 0 && s.size.ws_row && s.size.ws_col)
		ioctl(s.in, TIOCSWINSZ, &s.size);
}

static void client_read(struct client *c)
{
	unsigned char *b = (unsigned char *)c->buf;
	ssize_t n = recv(c->fd, b, sizeof c->buf, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		client_drop(c);
		return;
	}
	switch (b[0]) {
	case PKT_HELLO:
		if (n >= 2)
			c->want = b[1];
		break;
	case PKT_STDIN:
		c->off = 1;
		c->len = n;
		stdin_flush(c);
		break;
	case PKT_CLOSE:
		if (!(s.flags & SHIM_TTY))
			shut(&s.in);
		break;
	case PKT_SIZE:
		if (n >= 5) {
			s.size.ws_row = b[1] << 8 | b[2];
			s.size.ws_col = b[3] << 8 | b[4];
			resize();
		}
		break;
	}
}

// ---- output

static void output_close(int stream)
{
	if (lines[stream].len > 0)
		log_line(stream, 0);
	log_write();
	if (s.in == s.out[stream])
		s.in = -1; // the terminal is both
	shut(&s.out[stream]);
}

static void output_read(int stream)
{
	ssize_t n = read(s.out[stream], chunk + 1, CHUNK);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) { // a terminal ends with EIO
		output_close(stream);
		return;
	}
	chunk[0] = stream ? PKT_STDERR : PKT_STDOUT;
	chunk_len = 1 + n;
	s.budget -= n;
	log_text(stream, chunk + 1, n);
	for (int i = 0; i < CLIENTS; i++)
		if (clients[i].fd >= 0 && (clients[i].want & (stream ? WANT_STDERR : WANT_STDOUT)))
			client_send(&clients[i], &clients[i].behind, chunk, chunk_len);
}

// console_take receives the terminal that the container's init made.
static void console_take(void)
{
	char byte[128], control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = {byte, sizeof byte};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	if (recvmsg(s.console, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	if (h && h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS && h->cmsg_len == CMSG_LEN(sizeof(int))) {
		memcpy(&s.in, CMSG_DATA(h), sizeof(int));
		s.out[0] = s.in;
		fcntl(s.in, F_SETFL, fcntl(s.in, F_GETFL) | O_NONBLOCK);
		resize();
	}
	shut(&s.console);
}

// ---- the end

static void write_exit(void)
{
	int fd = openat(FD_RUN, ".exit", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	if (write(fd, s.exit, s.exit_len) == (ssize_t)s.exit_len)
		renameat(FD_RUN, ".exit", FD_RUN, "exit");
	close(fd);
}

static void end(const char *text, size_t n)
{
	memcpy(s.exit, text, n);
	s.exit_len = n;
	s.ended = 1;
	s.deadline = now_ms() + DRAIN_MS;
	s.budget = 0;
	shut(&s.console);
}

static pid_t container_pid(void)
{
	char b[32];
	int fd = openat(FD_RUN, "pid", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t n = read(fd, b, sizeof b - 1);
	close(fd);
	if (n <= 0)
		return -1;
	b[n] = 0;
	return atoi(b);
}

static void reap(void)
{
	struct signalfd_siginfo si;
	char text[128];
	int st;
	pid_t pid;
	while (read(s.sigfd, &si, sizeof si) > 0)
		;
	while ((pid = waitpid(-1, &st, WNOHANG)) > 0) {
		if (pid == s.creator) {
			if (st != 0 && !s.ended)
				end(text, snprintf(text, sizeof text, "create failed %d\n", st));
		} else if (!s.ended && pid == container_pid()) {
			struct timespec t;
			clock_gettime(CLOCK_REALTIME, &t);
			int code = WIFSIGNALED(st) ? 128 + WTERMSIG(st) : WEXITSTATUS(st);
			end(text, snprintf(text, sizeof text, "%d %d %lld.%09ld\n", code, st,
					   (long long)t.tv_sec, t.tv_nsec));
		}
	}
}

// settle closes what the container left open and tells of its end, in this
// order: output, the file "exit", the clients, this process.
static void settle(int quiet)
{
	if (!s.ended)
		return;
	int late = now_ms() >= s.deadline;
	if (late && !clients_behind() && (quiet || s.budget < -PIPE_BYTES))
		for (int i = 0; i < 2; i++)
			if (s.out[i] >= 0)
				output_close(i);
	int open = s.out[0] >= 0 || s.out[1] >= 0;
	if (s.announced == 0 && (late || (!open && !clients_behind()))) {
		write_exit();
		s.announced = 1;
	}
	if (s.announced == 1 && !open) {
		for (int i = 0; i < CLIENTS; i++)
			clients[i].owed = clients[i].fd >= 0;
		s.announced = 2;
	}
	if (s.announced == 2) {
		char pkt[1 + sizeof s.exit] = {PKT_EXIT};
		memcpy(pkt + 1, s.exit, s.exit_len);
		for (int i = 0; i < CLIENTS; i++)
			if (clients[i].fd >= 0 && clients[i].owed && !clients[i].behind)
				client_send(&clients[i], &clients[i].owed, pkt, 1 + s.exit_len);
		if (!clients_due())
			_exit(0);
	}
}

enum { P_SIGNAL, P_LISTEN, P_CONSOLE, P_OUT, P_ERR, P_IN, P_CLIENT };

static void serve(struct pollfd *p)
{
	if (p[P_SIGNAL].revents)
		reap();
	if (p[P_LISTEN].revents) {
		int fd = accept4(FD_LISTEN, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0)
			client_add(fd);
	}
	if (p[P_CONSOLE].revents)
		console_take();
	// Clients come before output: one that was there from the start gets all of it.
	for (int i = 0; i < CLIENTS; i++) {
		struct client *c = &clients[i];
		if (p[P_CLIENT + i].fd < 0 || c->fd != p[P_CLIENT + i].fd)
			continue;
		if (c->behind && (p[P_CLIENT + i].revents & (POLLOUT | POLLERR | POLLHUP)))
			client_send(c, &c->behind, chunk, chunk_len);
		if (c->fd >= 0 && !c->len && (p[P_CLIENT + i].revents & (POLLIN | POLLHUP | POLLERR)))
			client_read(c);
	}
	if (p[P_IN].revents)
		for (int i = 0; i < CLIENTS; i++)
			if (clients[i].fd >= 0 && clients[i].len)
				stdin_flush(&clients[i]);
	for (int i = 0; i < 2; i++)
		if (p[P_OUT + i].revents && s.out[i] >= 0 && !clients_behind())
			output_read(i);
}

static void loop(void)
{
	for (;;) {
		struct pollfd p[P_CLIENT + CLIENTS];
		int behind = clients_behind(), pending = 0, free = 0;
		for (int i = 0; i < CLIENTS; i++) {
			struct client *c = &clients[i];
			if (c->fd >= 0 && c->len && s.in < 0)
				stdin_flush(c);
			p[P_CLIENT + i] = (struct pollfd){
				.fd = c->fd,
				.events = (c->len ? 0 : POLLIN) | (c->behind || c->owed ? POLLOUT : 0),
			};
			// A hangup is always told: do not ask while its stdin waits.
			if (c->len && !c->behind && !c->owed)
				p[P_CLIENT + i].fd = -1;
			pending |= c->fd >= 0 && c->len;
			free |= c->fd < 0;
		}
		p[P_SIGNAL] = (struct pollfd){.fd = s.sigfd, .events = POLLIN};
		p[P_LISTEN] = (struct pollfd){.fd = free && (s.flags & SHIM_LISTEN) ? FD_LISTEN : -1, .events = POLLIN};
		p[P_CONSOLE] = (struct pollfd){.fd = s.console, .events = POLLIN};
		p[P_OUT] = (struct pollfd){.fd = behind ? -1 : s.out[0], .events = POLLIN};
		p[P_ERR] = (struct pollfd){.fd = behind ? -1 : s.out[1], .events = POLLIN};
		p[P_IN] = (struct pollfd){.fd = pending ? s.in : -1, .events = POLLOUT};
		int wait = -1;
		if (s.ended && s.announced < 2 && !behind) {
			int64_t left = s.deadline - now_ms();
			wait = left > 0 ? (int)left : 0;
		} else if (s.ended && s.announced == 0) {
			wait = 100;
		}
		int n = poll(p, P_CLIENT + CLIENTS, wait);
		if (n < 0 && errno != EINTR)
			_exit(1);
		if (n > 0)
			serve(p);
		settle(n > 0 && (p[P_OUT].revents || p[P_ERR].revents) ? 0 : 1);
	}
}

// ---- the beginning

static void die(const char *what)
{
	dprintf(2, "shim: %s: %s\n", what, strerror(errno));
	_exit(1);
}

// become_creator puts the creator's files where CREATOR_ says and closes all others.
static void become_creator(int in, int out, int err, int console, const sigset_t *mask)
{
	int from[] = {in, out, err, FD_JOB, FD_SYNC, console};
	int n = sizeof from / sizeof from[0];
	for (int i = 0; i < n; i++)
		if (from[i] >= 0 && (from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 64)) < 0)
			die("dup");
	for (int i = 0; i < n; i++) {
		close(CREATOR_STDIN + i);
		if (from[i] >= 0 && dup3(from[i], CREATOR_STDIN + i, O_CLOEXEC) < 0)
			die("dup");
	}
	if (syscall(SYS_close_range, CREATOR_STDIN + n, ~0U, 0) < 0)
		die("close_range");
	// The container's root is mounted where only the container sees it, so
	// nothing is left behind by whatever ends first.
	if ((s.flags & SHIM_MOUNTS) &&
	    (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0))
		die("unshare");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NAME, "skep-creator");
	sigprocmask(SIG_SETMASK, mask, NULL);
	skep_creator = 1;
}

static void shim(const char *args)
{
	int nclients = 0;
	if (sscanf(args, "%d %ld %d %d", &s.flags, &s.max_size, &s.max_files, &nclients) != 4) {
		errno = EINVAL;
		die("arguments");
	}
	int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1}, con[2] = {-1, -1};
	if (s.flags & SHIM_TTY) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, con) < 0)
			die("socketpair");
	} else {
		if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
			die("pipe");
		if ((s.flags & SHIM_STDIN) && pipe2(in, O_CLOEXEC) < 0)
			die("pipe");
		if (in[0] < 0 && (in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
			die("/dev/null");
	}
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	sigset_t chld, mask;
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, &mask);
	s.creator = fork();
	if (s.creator < 0)
		die("fork");
	if (s.creator == 0) {
		become_creator(in[0], out[1], err[1], con[1], &mask);
		return;
	}

	prctl(PR_SET_NAME, "skep-shim");
	shut(&in[0]);
	shut(&out[1]);
	shut(&err[1]);
	shut(&con[1]);
	close(FD_JOB);
	close(FD_SYNC);
	for (int i = FD_RUN; i < FD_CLIENT + nclients; i++)
		if (i != FD_JOB && i != FD_SYNC)
			fcntl(i, F_SETFD, FD_CLOEXEC);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	int adj = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (adj >= 0) { // as far as we may
		if (write(adj, "-998", 4) < 0)
			errno = 0;
		close(adj);
	}
	if (chdir("/") < 0)
		die("/");

	for (int i = 0; i < CLIENTS; i++)
		clients[i].fd = -1;
	for (int i = 0; i < nclients; i++)
		client_add(FD_CLIENT + i);
	s.in = in[1];
	s.out[0] = out[0];
	s.out[1] = err[0];
	s.console = con[0];
	s.log = -1;
	if (s.in >= 0)
		fcntl(s.in, F_SETFL, O_NONBLOCK);
	if (s.flags & SHIM_LOG)
		log_open();
	s.sigfd = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
	if (s.sigfd < 0)
		die("signalfd");
	loop();
}

__attribute__((constructor)) static void door(void)
{
	const char *args = getenv(SHIM_VARIABLE);
	if (args && !getenv("_LIBCONTAINER_INITPIPE"))
		shim(args);
	else if (!args && getpid() == 1)
		skep_init_door();
}
