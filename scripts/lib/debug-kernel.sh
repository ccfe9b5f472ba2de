# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# The debug kernel: the stable suite's linux-source, configured by
# scripts/debug-kernel.config, built once with that suite's compiler.
#
# $CACHE/debug/HASH/tree     source and build tree, modules are built against it
# $CACHE/debug/HASH/modules  its /lib/modules/RELEASE
# $CACHE/debug/HASH/release  written last; without it the rest is half made
# HASH is that of the configuration, the recipe and the source package.

debug_kernel_home()
{
	local root=$1

	echo "$CACHE/debug/$({
		cat "$PROJECT/scripts/debug-kernel.config"
		declare -f debug_kernel_make
		(cd "$root/usr/src" && stat -c '%n %s' linux-source-*)
	} | hash_of)"
}

debug_kernel_ensure()
{
	local root=$1
	local home

	home=$(debug_kernel_home "$root")
	[ -e "$home/release" ] ||
		with_lock "$CACHE/lock/debug" debug_kernel_build "$root" "$home"
}

debug_kernel_build()
{
	local root=$1 home=$2
	local started=$SECONDS old

	[ ! -e "$home/release" ] || return 0
	say "building the debug kernel (once; 10 minutes or more)"
	for old in "$CACHE"/debug/*; do
		if [ "$old" = "$home" ] || { [ -d "$old" ] && flock -n "$old" true; }; then
			rm -rf "$old"
		fi
	done
	mkdir -p "$home/tree"
	cp "$PROJECT/scripts/debug-kernel.config" "$home/fragment"
	KERNEL_TREE=$home/tree debug_kernel_make "$root" "$home" \
		>"$home/build.log" 2>&1 || {
		tail -n 30 "$home/build.log" >&2
		die "$STATUS_SETUP" "cannot build the debug kernel (see $home/build.log)"
	}
	mv "$home"/install/lib/modules/* "$home/modules"
	rm -rf "$home/install"
	cp "$home/tree/include/config/kernel.release" "$home/release.new"
	mv "$home/release.new" "$home/release"
	say "built it in $((SECONDS - started)) s"
}

# KASAN and UBSAN look at what a target works with: the block layer, device-mapper,
# workqueues, memory management, the library. The rest of the kernel does without:
# it is not what is tested, and its checks take half of an emulated CPU's time.
#
# Object files are of no use later and fill gigabytes.
debug_kernel_make()
{
	local root=$1 home=$2

	# shellcheck disable=SC2016 # expanded by the inner shell
	root_chroot "$root" "$home" sh -euxc '
		tar -C /kernel --strip-components=1 -xJf /usr/src/linux-source-*.tar.xz
		cd /kernel
		find arch crypto drivers fs init ipc kernel net security \
			-name Makefile ! -path "arch/x86/boot/*" \
			! -path "drivers/md/*" ! -path "drivers/block/*" \
			! -path fs/Makefile ! -path "fs/iomap/*" \
			! -path kernel/Makefile \
			-exec sed -i "1a KASAN_SANITIZE := n\nUBSAN_SANITIZE := n" {} +
		make -s tinyconfig
		scripts/kconfig/merge_config.sh -m .config /build/fragment
		make -s olddefconfig
		# "is not set" may also be absent.
		grep -E "^CONFIG_" /build/fragment | while read -r option; do
			grep -qxF "$option" .config || echo "not in .config: $option"
		done >/build/missing
		cat /build/missing
		[ ! -s /build/missing ]
		make -s -j"$(nproc)" bzImage modules
		make -s modules_install INSTALL_MOD_PATH=/build/install
		rm -f /build/install/lib/modules/*/build
		find . -name "*.o" -delete
	'
}
