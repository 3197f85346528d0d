// SPDX-License-Identifier: Apache-2.0

// A container's init, for those that ask for one: this binary, mounted at
// SKEP_INIT, starts the command, passes signals on to it, reaps orphans, and
// ends with the command's status.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shim.h"

#define SKEP_INIT "/sbin/docker-init"

// arguments reads the command line; not every C library gives it to constructors.
static char **arguments(void)
{
	size_t len = 0, room = 1 << 16, n = 0;
	char *b = NULL;
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	for (ssize_t got = 1; got > 0; len += got > 0 ? got : 0) {
		room *= 2;
		b = realloc(b, room);
		if (!b)
			return NULL;
		got = read(fd, b + len, room - len - 1);
	}
	close(fd);
	b[len] = 0;
	for (size_t i = 0; i < len; i++)
		n += b[i] == 0;
	char **argv = calloc(n + 1, sizeof *argv);
	if (!argv)
		return NULL;
	for (size_t i = 0, at = 0; i < n; i++, at += strlen(b + at) + 1)
		argv[i] = b + at;
	return argv;
}

static void supervise(pid_t child, const sigset_t *all)
{
	for (;;) {
		siginfo_t si;
		int sig = sigwaitinfo(all, &si);
		if (sig > 0 && sig != SIGCHLD) {
			kill(child, sig);
			continue;
		}
		int st, status = -1;
		pid_t pid;
		while ((pid = waitpid(-1, &st, WNOHANG)) > 0)
			if (pid == child)
				status = st;
		if (status != -1)
			_exit(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
	}
}

void skep_init_door(void)
{
	char **argv = arguments();
	if (!argv || !argv[0] || strcmp(argv[0], SKEP_INIT) || !argv[1] || strcmp(argv[1], "--") || !argv[2])
		return;
	sigset_t all, mask;
	sigfillset(&all);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGILL);
	sigprocmask(SIG_SETMASK, &all, &mask);
	pid_t child = fork();
	if (child < 0)
		_exit(1);
	if (child == 0) {
		setpgid(0, 0);
		tcsetpgrp(0, getpid()); // without a terminal this fails, and may
		sigprocmask(SIG_SETMASK, &mask, NULL);
		execvp(argv[2], argv + 2);
		int code = errno == ENOENT ? 127 : 126;
		dprintf(2, "exec %s: %s\n", argv[2], strerror(errno));
		_exit(code);
	}
	supervise(child, &all);
}
