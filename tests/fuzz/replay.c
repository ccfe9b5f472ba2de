// SPDX-License-Identifier: GPL-2.0-only
/*
 * replay FILE...: inputs through format.c without a fuzzer; prints KTAP.  Sound
 * images must be accepted, and many changes of each do no harm.  The same files
 * give the same run.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "must.h"
#include "mutate.h"
#include "walk.h"

#define CHANGES		200U
/* On top of each other */
#define CHANGES_MAX	3U
#define INPUT_MAX	0x100000U

static uint8_t *read_file(const char *path, size_t *size)
{
	uint8_t *data = malloc(INPUT_MAX);
	FILE *file = fopen(path, "r");

	must(data && file);
	*size = fread(data, 1, INPUT_MAX, file);
	must(!ferror(file) && *size < INPUT_MAX);
	fclose(file);
	return data;
}

static void replay_changes(const uint8_t *input, size_t size)
{
	uint8_t *changed = malloc(size);
	uint32_t i, n;

	must(changed);
	for (i = 0; i < CHANGES; i++) {
		memcpy(changed, input, size);
		for (n = 0; n <= i % CHANGES_MAX; n++)
			mutate(changed, size, i * CHANGES_MAX + n);
		walk(changed, size);
	}
	free(changed);
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

int main(int argc, char **argv)
{
	size_t size;
	uint8_t *input;
	int i;

	must(argc > 1);
	printf("1..%d\n", argc - 1);
	for (i = 1; i < argc; i++) {
		input = read_file(argv[i], &size);
		must(walk(input, size) == 0);
		replay_changes(input, size);
		free(input);
		printf("ok %d - fuzzer's seed %s\n", i, base_name(argv[i]));
		fflush(stdout);
	}
	return 0;
}
