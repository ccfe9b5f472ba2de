# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# Builds the module and qcow2setup for one kernel, in a copy of the sources in
# the cache: the project's directory stays clean and kernels do not mix.
#
# $CACHE/build/KERNEL-HASH/src    the copy
# $CACHE/build/KERNEL-HASH/built  what the last good build was made from;
#                                 written last
# HASH is that of the project's path and of variables for make.

# Prints the project's files that may matter to the build, separated by NUL.
build_sources()
{
	local project=$1

	if [ -e "$project/.git" ] && command -v git >/dev/null; then
		git -c safe.directory="$project" -C "$project" ls-files -z \
			--cached --others --exclude-standard
	else
		(cd "$project" && find . -name .git -prune -o -type f -printf '%P\0')
	fi | grep -zvE '^(scripts|Documentation|\.ci)/|^[^/]*\.md$|\.(o|ko|a|cmd|mod|d)$' |
	sort -zu | while IFS= read -r -d '' file; do
		[ ! -f "$project/$file" ] || printf '%s\0' "$file"
	done
}

# Brings the copy up to date. A changed file gets the time of copying, whatever
# its own time is, so that make cannot miss it.
build_sync()
{
	local project=$1 list=$2 src=$3
	local file

	mkdir -p "$src"
	if [ -e "$src.list" ]; then
		comm -z -13 "$list" "$src.list" |
		while IFS= read -r -d '' file; do
			rm -f "$src/$file"
		done
	fi
	while IFS= read -r -d '' file; do
		cmp -s "$project/$file" "$src/$file" && continue
		mkdir -p "$src/$(dirname "$file")"
		cp "$project/$file" "$src/$file"
	done <"$list"
	cp "$list" "$src.list"
}

# build_into JOB PROJECT KERNEL ROOT KDIR [VAR=VALUE]...: builds what is out of
# date and copies the result to the job. KDIR is the kernel's build directory as
# seen in ROOT.
build_into()
{
	local job=$1 project=$2 kernel=$3
	local name

	shift 3
	name=$kernel-$(printf '%s\0' "$project" "${@:3}" | hash_of)
	with_lock "$CACHE/lock/build-$name" \
		build_locked "$job" "$project" "$CACHE/build/$name" "$@"
}

build_locked()
{
	local job=$1 project=$2 dir=$3

	shift 3
	mkdir -p "$dir"
	build_sources "$project" >"$dir/list"
	build_stamp "$project" "$dir/list" "$@" >"$dir/wanted"
	if ! cmp -s "$dir/wanted" "$dir/built"; then
		rm -f "$dir/built"
		build_sync "$project" "$dir/list" "$dir/src"
		build_make "$dir" "$@"
		mv "$dir/wanted" "$dir/built"
	fi
	build_copy "$dir/src" "$job"
}

# What the result depends on: the sources, the root directory, the kernel (in
# KERNEL_TREE, if set) and variables.
build_stamp()
{
	local project=$1 list=$2

	shift 2
	printf '%s\n' "${KERNEL_TREE-}" "$@"
	(cd "$project" && xargs -0 -r sha256sum -- <"$list")
}

# Of a good build only the warnings are shown.
build_make()
{
	local dir=$1 root=$2 kdir=$3
	local started=$SECONDS

	shift 3
	if ! root_chroot "$root" "$dir" make -C /build/src -j"$(nproc)" \
		KDIR="$kdir" "$@" >"$dir/log" 2>&1; then
		cat "$dir/log" >&2
		die "$STATUS_BUILD" "the build failed"
	fi
	grep -A 5 'warning: ' "$dir/log" >&2 || true
	say "built ${dir##*/} in $((SECONDS - started)) s"
}

# Copies modules and the programs that the build made.
build_copy()
{
	local src=$1 job=$2
	local file

	mkdir -p "$job/modules" "$job/bin"
	find "$src" -name '*.ko' -exec cp -t "$job/modules" {} +
	find "$src" -type f -perm -100 ! -name '*.ko' ! -name '*.so*' -print0 |
	while IFS= read -r -d '' file; do
		grep -zqFx "${file#"$src/"}" "$src.list" || cp "$file" "$job/bin/"
	done
	if [ -e "$job/modules/dm-qcow2.ko" ]; then
		modinfo -F depends "$job/modules/dm-qcow2.ko" | tr , ' ' >"$job/needs"
	else
		say "the build made no dm-qcow2.ko"
	fi
}
