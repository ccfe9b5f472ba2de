// SPDX-License-Identifier: GPL-2.0-only
/*
 * qcow2setup: qcow2 images as block devices.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "check.h"
#include "commands.h"
#include "dm.h"
#include "report.h"

enum option_id {
	OPT_HELP = 'h',
	OPT_VERSION = 'V',
	OPT_BACKING = 'b',
	OPT_BACKING_FMT = 'F',
	OPT_OPTIONS = 'o',
	OPT_JSON = 256,
	OPT_READ_ONLY,
	OPT_FORMAT,
	OPT_PARTITIONS,
	OPT_NO_GROW,
	OPT_BACKING_CHAIN,
	OPT_EXISTING,
	OPT_TOP,
	OPT_BASE,
	OPT_INTO,
	OPT_IMAGE_FORMAT,
	OPT_DRY_RUN,
	OPT_DELETE,
	OPT_KEEP,
	OPT_DOWN,
	OPT_UP,
	OPT_UNSAFE = 'u',
	OPT_SHALLOW = 512,
	OPT_PIVOT,
	OPT_FINISH,
	OPT_FORCE,
	OPT_SEARCH,
	OPT_BANDWIDTH,
	OPT_DETACH,
	OPT_FSFREEZE,
	OPT_QGA,
	OPT_CLEAN,
	OPT_REPAIR,
	OPT_SHRINK,
	OPT_NO_SPACE,
	OPT_SNAPSHOT,
	OPT_KEY_FILE,
	OPT_PLAIN,
	/* No options: stand for chain_options and user_options */
	OPT_CHAIN,
	OPT_USERS,
};

static const struct option options[] = {
	{ "help", no_argument, NULL, OPT_HELP },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ "json", no_argument, NULL, OPT_JSON },
	{ "read-only", no_argument, NULL, OPT_READ_ONLY },
	{ "readonly", no_argument, NULL, OPT_READ_ONLY },
	{ "backing-format", required_argument, NULL, OPT_FORMAT },
	{ "partitions", no_argument, NULL, OPT_PARTITIONS },
	{ "no-grow", no_argument, NULL, OPT_NO_GROW },
	{ "backing-chain", no_argument, NULL, OPT_BACKING_CHAIN },
	{ "existing", no_argument, NULL, OPT_EXISTING },
	{ "top", required_argument, NULL, OPT_TOP },
	{ "base", required_argument, NULL, OPT_BASE },
	{ "into", required_argument, NULL, OPT_INTO },
	{ "format", required_argument, NULL, OPT_IMAGE_FORMAT },
	{ "dry-run", no_argument, NULL, OPT_DRY_RUN },
	{ "delete", no_argument, NULL, OPT_DELETE },
	{ "keep", no_argument, NULL, OPT_KEEP },
	{ "down", no_argument, NULL, OPT_DOWN },
	{ "up", no_argument, NULL, OPT_UP },
	{ "shallow", no_argument, NULL, OPT_SHALLOW },
	{ "pivot", no_argument, NULL, OPT_PIVOT },
	{ "finish", no_argument, NULL, OPT_FINISH },
	{ "force", no_argument, NULL, OPT_FORCE },
	{ "search", required_argument, NULL, OPT_SEARCH },
	{ "bandwidth", required_argument, NULL, OPT_BANDWIDTH },
	{ "detach", no_argument, NULL, OPT_DETACH },
	{ "fsfreeze", required_argument, NULL, OPT_FSFREEZE },
	{ "qga", required_argument, NULL, OPT_QGA },
	{ "clean", no_argument, NULL, OPT_CLEAN },
	{ "repair", no_argument, NULL, OPT_REPAIR },
	{ "shrink", no_argument, NULL, OPT_SHRINK },
	{ "no-space", required_argument, NULL, OPT_NO_SPACE },
	{ "snapshot", required_argument, NULL, OPT_SNAPSHOT },
	{ "key-file", required_argument, NULL, OPT_KEY_FILE },
	{ "plain", no_argument, NULL, OPT_PLAIN },
	{ }
};

/**
 * struct command - a command
 * @name: its name
 * @run: carries it out
 * @least: number of words it needs
 * @most: number of words it takes
 * @options: those it takes besides --json, --help and --version, 0 at the end
 * @usage: its arguments
 * @what: what it does
 */
struct command {
	const char *name;
	int (*run)(struct arguments *args);
	int least;
	int most;
	int options[8];
	const char *usage;
	const char *what;
};

/* What all commands take that merge or copy images */
static const int chain_options[] = {
	OPT_FORMAT, OPT_DRY_RUN, OPT_BANDWIDTH, OPT_DETACH, OPT_KEY_FILE,
};

/* What those of them take that may harm other users of the images */
static const int user_options[] = { OPT_FORCE, OPT_SEARCH };

static const char chain_usage[] =
	"\n             [--dry-run] [--bandwidth BYTES] [--detach]\n"
	"             [--backing-format IMAGE=FORMAT]\n"
	"             [--key-file [IMAGE=]FILE]";

static const char user_usage[] = " [--force] [--search DIR]";

static const struct command commands[] = {
	{ "open", cmd_open, 2, 2,
	  { OPT_READ_ONLY, OPT_FORMAT, OPT_PARTITIONS, OPT_NO_GROW,
	    OPT_REPAIR, OPT_NO_SPACE, OPT_SNAPSHOT, OPT_KEY_FILE },
	  "IMAGE NAME [--read-only] [--backing-format IMAGE=FORMAT]\n"
	  "             [--partitions] [--no-grow] [--repair]\n"
	  "             [--no-space=queue|error] [--snapshot SNAPSHOT]\n"
	  "             [--key-file [IMAGE=]FILE]",
	  "open the chain under IMAGE as /dev/mapper/NAME" },
	{ "close", cmd_close, 1, 1, { 0 }, "NAME", "close the device NAME" },
	{ "list", cmd_list, 0, 0, { 0 }, "", "list open devices" },
	{ "status", cmd_status, 1, 1, { 0 }, "NAME",
	  "show the state of the device NAME" },
	{ "info", cmd_info, 1, 1, { OPT_BACKING_CHAIN, OPT_FORMAT },
	  "IMAGE|NAME [--backing-chain] [--backing-format IMAGE=FORMAT]",
	  "show what is in an image, or in those of a device" },
	{ "map", cmd_map, 1, 1, { OPT_FORMAT },
	  "IMAGE|NAME [--backing-format IMAGE=FORMAT]",
	  "show which image has what, and where" },
	{ "check", cmd_check, 1, 1, { OPT_REPAIR, OPT_KEY_FILE },
	  "IMAGE [--repair] [--key-file FILE]",
	  "check an image that is not open, and repair it" },
	{ "create", cmd_create, 1, 2,
	  { OPT_BACKING, OPT_BACKING_FMT, OPT_OPTIONS, OPT_FORMAT,
	    OPT_KEY_FILE },
	  "IMAGE [SIZE] [-b BACKING -F FORMAT] [-o OPTIONS]\n"
	  "             [--backing-format IMAGE=FORMAT]\n"
	  "             [--key-file [IMAGE=]FILE]",
	  "create an image (SIZE and OPTIONS as for qemu-img)" },
	{ "resize", cmd_resize, 2, 2,
	  { OPT_SHRINK, OPT_FORCE, OPT_SEARCH, OPT_NO_GROW, OPT_FORMAT,
	    OPT_KEY_FILE },
	  "NAME|IMAGE [+|-]SIZE [--no-grow] [--shrink] [--force]\n"
	  "             [--search DIR] [--backing-format IMAGE=FORMAT]\n"
	  "             [--key-file [IMAGE=]FILE]",
	  "make an image longer, also one in use; or shorter" },
	{ "snapshot", cmd_snapshot, 1, INT_MAX,
	  { OPT_EXISTING, OPT_FORMAT, OPT_NO_GROW, OPT_FSFREEZE, OPT_QGA,
	    OPT_DRY_RUN, OPT_KEY_FILE, OPT_PLAIN },
	  "NAME|IMAGE OVERLAY | NAME=OVERLAY... [--existing] [--no-grow]\n"
	  "             [--fsfreeze MOUNTPOINT] [--qga SOCKET] [--dry-run]\n"
	  "             [--backing-format IMAGE=FORMAT]\n"
	  "             [--key-file [OVERLAY=]FILE] [--plain]",
	  "go on writing in OVERLAY; what was written so far stays as it is" },
	{ "revert", cmd_revert, 3, 3,
	  { OPT_EXISTING, OPT_FORMAT, OPT_NO_GROW, OPT_DRY_RUN, OPT_KEY_FILE, OPT_PLAIN },
	  "NAME|IMAGE LAYER OVERLAY [--existing] [--no-grow] [--dry-run]\n"
	  "             [--backing-format IMAGE=FORMAT]\n"
	  "             [--key-file [OVERLAY=]FILE] [--plain]",
	  "go on in OVERLAY from what a lower image shows" },
	{ "internal", cmd_internal, 2, 3,
	  { OPT_FSFREEZE, OPT_QGA, OPT_USERS, OPT_KEY_FILE },
	  "list NAME|IMAGE | create|apply|delete NAME|IMAGE SNAPSHOT\n"
	  "             [--fsfreeze MOUNTPOINT] [--qga SOCKET]\n"
	  "             [--key-file FILE]",
	  "snapshots within an image; SNAPSHOT is an ID or a name" },
	{ "commit", cmd_commit, 1, 1,
	  { OPT_TOP, OPT_BASE, OPT_DELETE, OPT_CHAIN, OPT_USERS },
	  "NAME|IMAGE [--top IMAGE] [--base IMAGE] [--delete]",
	  "merge the images from --top down into --base" },
	{ "pull", cmd_pull, 1, 1,
	  { OPT_BASE, OPT_INTO, OPT_DELETE, OPT_CHAIN, OPT_USERS },
	  "NAME|IMAGE [--base IMAGE] [--into IMAGE] [--delete]",
	  "merge what is below --into and above --base up into --into" },
	{ "flatten", cmd_flatten, 1, 1,
	  { OPT_INTO, OPT_DELETE, OPT_CHAIN, OPT_USERS },
	  "NAME|IMAGE [--into IMAGE] [--delete]",
	  "merge all that is below up into an image" },
	{ "delete", cmd_delete, 2, 2,
	  { OPT_UP, OPT_DOWN, OPT_KEEP, OPT_CHAIN, OPT_USERS },
	  "NAME|IMAGE SNAPSHOT-IMAGE [--up|--down] [--keep]",
	  "take an image out of a chain, and delete it" },
	{ "copy", cmd_copy, 2, 2,
	  { OPT_IMAGE_FORMAT, OPT_SHALLOW, OPT_PIVOT, OPT_FINISH, OPT_PLAIN,
	    OPT_CHAIN },
	  "NAME|IMAGE DEST [--format FORMAT] [--shallow] [--pivot|--finish]\n"
	  "             [--plain]",
	  "copy a chain to DEST; with --pivot the device goes on there" },
	{ "rebase", cmd_rebase, 1, 1,
	  { OPT_BACKING, OPT_BACKING_FMT, OPT_UNSAFE, OPT_CHAIN, OPT_USERS },
	  "NAME|IMAGE -b BACKING -F FORMAT [-u]",
	  "change the backing file, and keep the contents (with -u do not)" },
	{ "jobs", cmd_jobs, 0, 0, { OPT_CLEAN }, "[--clean]",
	  "list what is under way" },
	{ "wait", cmd_wait, 1, 1, { 0 }, "NAME|IMAGE",
	  "wait until a job is over" },
	{ "cancel", cmd_cancel, 1, 1, { 0 }, "NAME|IMAGE",
	  "stop a job; the chain is valid then" },
	{ "tree", cmd_tree, 1, 1, { 0 }, "DIRECTORY|IMAGE|NAME",
	  "draw which image stands on which" },
};

#define COMMAND_COUNT	(sizeof(commands) / sizeof(commands[0]))

static bool is_among(const int *list, unsigned int count, int option)
{
	while (count--) {
		if (list[count] == option)
			return true;
	}
	return false;
}

static bool lists(const struct command *command, int option)
{
	return is_among(command->options,
			sizeof(command->options) / sizeof(int), option);
}

static void print_usage(FILE *to, const struct command *command)
{
	fprintf(to, "  %s%s%s%s%s\n", command->name, *command->usage ? " " : "",
		command->usage, lists(command, OPT_CHAIN) ? chain_usage : "",
		lists(command, OPT_USERS) ? user_usage : "");
}

/* Of one command, or of all */
static void print_help(const struct command *only)
{
	unsigned int i;

	puts("Usage: qcow2setup COMMAND [ARGUMENT]... [OPTION]...\n"
	     "\n"
	     "Makes block devices of qcow2 images.\n");
	for (i = 0; i < COMMAND_COUNT; i++) {
		if (only && only != &commands[i])
			continue;
		print_usage(stdout, &commands[i]);
		printf("        %s\n", commands[i].what);
	}
	puts("\n"
	     "  --json      print JSON\n"
	     "  --help      print this text\n"
	     "  --version   print the version\n"
	     "\n"
	     "A word with a slash is a path, one without is the name of a device.\n"
	     "Exit codes: 0 success, 1 wrong parameters, 2 no permission, 3 out of memory,\n"
	     "4 wrong device or image or a job was cancelled, 5 device exists or is busy;\n"
	     "check has those of qemu-img. See qcow2setup(8).");
}

static const struct command *find_command(const char *name)
{
	unsigned int i;

	for (i = 0; i < COMMAND_COUNT; i++) {
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	}
	return NULL;
}

static bool takes(const struct command *command, int option)
{
	return option == OPT_JSON || lists(command, option) ||
		(lists(command, OPT_CHAIN) &&
		 is_among(chain_options, sizeof(chain_options) / sizeof(int),
			  option)) ||
		(lists(command, OPT_USERS) &&
		 is_among(user_options, sizeof(user_options) / sizeof(int),
			  option));
}

/* An option that a command does not take. Those without a name are letters. */
static int refuse_option(const struct command *command, int option)
{
	char letter[2] = { option };
	const struct option *known;

	for (known = options; known->name && known->val != option; known++)
		;
	return report_fail(EINVAL, "%s%s is not an option of %s.",
			   known->name ? "--" : "-",
			   known->name ? known->name : letter, command->name);
}

static bool *chain_flag(struct arguments *args, int option)
{
	switch (option) {
	case OPT_DRY_RUN:
		return &args->dry_run;
	case OPT_DELETE:
		return &args->delete_files;
	case OPT_KEEP:
		return &args->keep;
	case OPT_DOWN:
		return &args->down;
	case OPT_UP:
		return &args->up;
	case OPT_UNSAFE:
		return &args->unsafe;
	case OPT_SHALLOW:
		return &args->shallow;
	case OPT_PIVOT:
		return &args->pivot;
	case OPT_FINISH:
		return &args->finish;
	case OPT_DETACH:
		return &args->job.detach;
	default:
		return &args->force;
	}
}

static void add_string(const char ***list, unsigned int *count,
		       const char *string)
{
	*list = grow_array(*list, *count, sizeof(**list));
	(*list)[(*count)++] = string;
}

/* Of several -o all count, as for qemu-img. */
static void add_options(struct arguments *args, const char *options)
{
	char *all = text("%s%s%s", args->options ? args->options : "",
			 args->options ? "," : "", options);

	free(args->options);
	args->options = all;
}

/* Those of the commands that merge or copy images */
static int set_chain_option(struct arguments *args, int option)
{
	switch (option) {
	case OPT_TOP:
		args->top = optarg;
		break;
	case OPT_BASE:
		args->base = optarg;
		break;
	case OPT_INTO:
		args->into = optarg;
		break;
	case OPT_IMAGE_FORMAT:
		args->image_format = optarg;
		break;
	case OPT_SEARCH:
		add_string(&args->search, &args->nsearch, optarg);
		break;
	case OPT_BANDWIDTH:
		return job_bandwidth(optarg, &args->job.bandwidth);
	default:
		*chain_flag(args, option) = true;
	}
	return 0;
}

static int set_no_space(struct arguments *args, const char *word)
{
	args->no_space_error = !strcmp(word, "error");
	if (args->no_space_error || !strcmp(word, "queue"))
		return 0;
	return report_fail(EINVAL,
			   "--no-space: '%s' is neither queue (writes wait for space) nor error (they fail).",
			   word);
}

static int set_option(struct arguments *args, int option)
{
	switch (option) {
	case OPT_JSON:
		args->json = true;
		args->job.json = true;
		break;
	case OPT_READ_ONLY:
		args->read_only = true;
		break;
	case OPT_PARTITIONS:
		args->partitions = true;
		break;
	case OPT_NO_GROW:
		args->no_grow = true;
		break;
	case OPT_BACKING_CHAIN:
		args->backing_chain = true;
		break;
	case OPT_EXISTING:
		args->existing = true;
		break;
	case OPT_BACKING:
		args->backing = optarg;
		break;
	case OPT_BACKING_FMT:
		args->backing_format = optarg;
		break;
	case OPT_OPTIONS:
		add_options(args, optarg);
		break;
	case OPT_FSFREEZE:
		add_string(&args->freeze.mounts, &args->freeze.mount_count,
			   optarg);
		break;
	case OPT_QGA:
		add_string(&args->freeze.sockets, &args->freeze.socket_count,
			   optarg);
		break;
	case OPT_CLEAN:
		args->clean = true;
		break;
	case OPT_REPAIR:
		args->repair = true;
		break;
	case OPT_SHRINK:
		args->shrink = true;
		break;
	case OPT_NO_SPACE:
		return set_no_space(args, optarg);
	case OPT_SNAPSHOT:
		args->snapshot = optarg;
		break;
	case OPT_PLAIN:
		args->plain = true;
		break;
	case OPT_KEY_FILE:
		return passphrases_add(&args->unlock.passphrases, optarg);
	case OPT_FORMAT:
		return formats_add(&args->formats, optarg);
	default:
		return set_chain_option(args, option);
	}
	return 0;
}

static int usage_error(void)
{
	fputs("See 'qcow2setup --help'.\n", stderr);
	return -EINVAL;
}

/* Usages have several lines, which a message must not have. */
static int refuse_words(const struct command *command)
{
	report_fail(EINVAL, "Wrong number of arguments. Usage:");
	print_usage(stderr, command);
	return usage_error();
}

static bool is_command(int argc, char **argv, const char *name)
{
	while (--argc > 0) {
		if (!strcmp(argv[argc], name))
			return true;
	}
	return false;
}

/* Is the next word the value of an option? */
static bool wants_value(const char *word)
{
	const struct option *known;

	if (strncmp(word, "--", 2))
		return false;
	for (known = options; known->name; known++) {
		if (!strcmp(known->name, word + 2))
			return known->has_arg == required_argument;
	}
	return false;
}

static int find_size(int argc, char **argv)
{
	int i;

	for (i = 2; i < argc && strcmp(argv[i], "--"); i++) {
		if (argv[i][0] == '-' && isdigit((unsigned char)argv[i][1]) &&
		    !wants_value(argv[i - 1]))
			return i;
	}
	return 0;
}

/*
 * "-1G" is a size, and not options: no option is a digit. It goes to the end,
 * where nothing behind "--" is one.
 */
static char **mark_size(int *argc, char **argv)
{
	bool marks = !is_command(*argc, argv, "--");
	int size = find_size(*argc, argv);
	char **marked;
	int count;

	if (!size || !is_command(*argc, argv, "resize"))
		return argv;
	count = *argc - 1;
	marked = grow_array(NULL, *argc + 1, sizeof(*marked));
	memcpy(marked, argv, size * sizeof(*marked));
	memcpy(marked + size, argv + size + 1, (count - size) * sizeof(*marked));
	if (marks)
		marked[count++] = "--";
	marked[count++] = argv[size];
	marked[count] = NULL;
	*argc = count;
	return marked;
}

/* Options may stand before the command, too. */
static int parse(int argc, char **argv, struct arguments *args,
		 const struct command **command)
{
	int seen[32], count = 0, option, words, i, r = 0;
	bool help = false;

	while (!r && (option = getopt_long(argc, argv, "hVb:F:o:u", options,
					   NULL)) != -1) {
		if (option == '?')
			return usage_error();
		if (option == OPT_HELP) {
			help = true;
			continue;
		}
		if (option == OPT_VERSION) {
			puts("qcow2setup " QCOW2SETUP_VERSION);
			return 0;
		}
		if (count < 32)
			seen[count++] = option;
		r = set_option(args, option);
	}
	if (r < 0)
		return r;
	*command = optind < argc ? find_command(argv[optind]) : NULL;
	if (help) {
		print_help(*command);
		*command = NULL;
		return 0;
	}
	if (!*command) {
		if (optind < argc)
			report_fail(EINVAL, "Unknown command '%s'.",
				    argv[optind]);
		else
			report_fail(EINVAL, "No command given.");
		return usage_error();
	}
	words = argc - optind - 1;
	if (words < (*command)->least || words > (*command)->most)
		return refuse_words(*command);
	args->all_words = argv + optind + 1;
	args->word_count = words;
	for (i = 0; i < words && i < WORDS_MAX; i++)
		args->words[i] = argv[optind + 1 + i];
	for (i = 0; i < count; i++) {
		if (!takes(*command, seen[i])) {
			refuse_option(*command, seen[i]);
			return usage_error();
		}
	}
	return 0;
}

bool is_path(const char *word)
{
	return strchr(word, '/');
}

/* Descriptors 0 to 2 must not become an image that a message is written to. */
static void open_standard_descriptors(void)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR);
	} while (fd >= 0 && fd <= 2);
	if (fd > 2)
		close(fd);
}

static int run(const struct command *command, struct arguments *args)
{
	int r = command->run(args);

	while (r == -ENOKEY && unlock_is_wanted(&args->unlock)) {
		r = unlock_wanted(&args->unlock);
		if (r < 0)
			break;
		r = command->run(args);
	}
	return r;
}

/* What was lost on the way counts as well, and leaves nothing for the last flush. */
static int write_out(void)
{
	if (fflush(stdout) == EOF)
		return report_errno(errno, "Cannot write the result");
	return ferror(stdout) ?
		report_fail(EIO, "Cannot write all of the result.") : 0;
}

static int exit_code(const struct command *command, int r)
{
	/* Its exit codes are others. */
	if (r < 0 && command && command->run == cmd_check)
		return CHECK_FAILED;
	return r > 0 ? r : (int)report_exit_code(r);
}

/* A layer takes up to four; what can be had is for root to say, not a default. */
static void raise_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
	const struct command *command = NULL;
	struct arguments args = { 0 };
	char **marked = mark_size(&argc, argv);
	int r, lost = 0;

	args.job.unlock = &args.unlock;
	open_standard_descriptors();
	/* Growing a file beyond a limit must be an error, not the end. */
	signal(SIGXFSZ, SIG_IGN);
	raise_descriptors();
	dm_init();
	r = parse(argc, marked, &args, &command);
	if (!r && command)
		r = run(command, &args);
	formats_free(&args.formats);
	freeze_free(&args.freeze);
	unlock_free(&args.unlock);
	free(args.options);
	free(args.search);
	if (marked != argv)
		free(marked);
	if (r >= 0)
		lost = write_out();
	return exit_code(command, r ? r : lost);
}
