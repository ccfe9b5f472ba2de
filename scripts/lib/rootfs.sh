# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# The root directory of a Debian suite, with its kernel, headers and compiler,
# an image of it that the guest mounts, and the initramfs that finds its way
# there. All are made once and kept in the cache.
#
# $CACHE/roots/SUITE-HASH/root     the root directory, never written again
# $CACHE/roots/SUITE-HASH/image    the same as an ext4 file system
# $CACHE/roots/SUITE-HASH/vmlinux  its kernel, uncompressed
# $CACHE/roots/SUITE-HASH/release  its kernel's release; written last, so a
#                                  directory without it is half made
# HASH is that of the recipe: another recipe, another directory.

# The guest's tools, then what builds the module and the userspace command.
readonly ROOT_PACKAGES="
	linux-image-amd64 linux-headers-amd64 busybox-static kmod
	bsdextrautils fdisk file iproute2 jq mount procps psmisc python3 strace
	util-linux cryptsetup-bin dmsetup e2fsprogs fio nbd-client qemu-utils
	xfsprogs xz-utils zstd
	gcc libc6-dev make pkgconf
	libcmocka-dev libcryptsetup-dev libdevmapper-dev libjson-c-dev
	liburing-dev"

# The debug kernel is stable's source built by stable's compiler.
readonly ROOT_PACKAGES_STABLE="
	bc bison flex libelf-dev libssl-dev linux-source"

# What the initramfs needs of the kernel before the root directory is there;
# and what no udev will load later. Built-in ones do no harm.
readonly BOOT_MODULES="virtio_pci 9pnet_virtio 9p overlay virtio_console
	virtio_blk ext4"

root_packages()
{
	local suite=$1

	# shellcheck disable=SC2086 # a list
	printf '%s ' $ROOT_PACKAGES
	# shellcheck disable=SC2086
	[ "$suite" != stable ] || printf '%s ' $ROOT_PACKAGES_STABLE
}

# Documentation is left out, and so is the kernel's own initramfs. The last
# snapshot of a mirror is as good as a mirror: its date is not checked. Some
# mmdebstrap use the name that oldstable's security updates no longer have.
root_make()
{
	local suite=$1 dir=$2
	local packages sources

	# shellcheck disable=SC2016 # expanded by mmdebstrap
	sources='sed -i s,oldstable/updates,oldstable-security, "$1/etc/apt/sources.list"'

	packages=$(root_packages "$suite")
	INITRD=No TMPDIR="$(dirname "$dir")" mmdebstrap --quiet --variant=apt \
		--mode=root --setup-hook="$sources" \
		--aptopt='Acquire::Check-Valid-Until "false"' \
		--dpkgopt=force-unsafe-io \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--include="${packages// /,}" \
		"$suite" "$dir" </dev/null >&2 || return
	mkdir -p "$dir/build" "$dir/kernel"
	echo 127.0.0.1 localhost >"$dir/etc/hosts"
}

# Every library that a program opens is a conversation with the host where the
# guest has the root directory through 9p, and costs an emulated CPU more than
# to load it.
root_image()
{
	local dir=$1 image=$2
	local mib

	mib=$(du -sxm "$dir" | cut -f 1)
	truncate -s $((mib + mib / 8 + 64))M "$image" || return
	mke2fs -q -F -t ext4 -b 4096 -m 0 -O ^has_journal -d "$dir" "$image" >&2
}

root_recipe()
{
	root_packages "$1"
	declare -f root_make root_image
}

# Prints the directory that holds, or will hold, the suite's root directory.
root_home()
{
	echo "$CACHE/roots/$1-$(root_recipe "$1" | hash_of)"
}

root_ensure()
{
	local suite=$1
	local home

	home=$(root_home "$suite")
	[ -e "$home/release" ] ||
		with_lock "$CACHE/lock/root-$suite" root_build "$suite" "$home"
}

root_build()
{
	local suite=$1 home=$2
	local started=$SECONDS release

	[ ! -e "$home/release" ] || return 0
	need_on_host mmdebstrap=mmdebstrap mke2fs=e2fsprogs
	say "making the root directory of Debian $suite (once; minutes)"
	root_remove_others "$suite" "$home"
	mkdir -p "$home"
	root_make "$suite" "$home/root" ||
		die "$STATUS_SETUP" "cannot make the root directory of $suite"
	root_image "$home/root" "$home/image" ||
		die "$STATUS_SETUP" "cannot make an image of $home/root"
	release=$(basename "$home"/root/lib/modules/*)
	kernel_unpack "$home/root" "$home/root/boot/vmlinuz-$release" \
		>"$home/vmlinux" || die "$STATUS_SETUP" "cannot unpack the kernel"
	echo "$release" >"$home/release.new"
	mv "$home/release.new" "$home/release"
	say "made it in $((SECONDS - started)) s: Linux $release"
}

# Prints the ELF image in a bzImage (offsets: Documentation/arch/x86/boot.rst of
# Linux). QEMU boots it as a PVH kernel; an emulated CPU needs 2 s to unpack it.
# The payload ends with its length, which the unpackers take for garbage.
kernel_unpack()
{
	local root=$1 image=$2
	local start length unpack

	start=$((($(number_at "$image" 0x1f1 1) + 1) * 512 +
		$(number_at "$image" 0x248 4)))
	length=$(number_at "$image" 0x24c 4)
	case $(od -An -tx1 -j "$start" -N 4 "$image") in
	' 28 b5 2f fd') unpack="zstd -dc" ;;
	' fd 37 7a 58') unpack="xz -dc --single-stream" ;;
	' 1f 8b '*) unpack="gzip -dc" ;;
	*) return 1 ;;
	esac
	# shellcheck disable=SC2086 # a command and its options
	head -c "$((start + length - 4))" "$image" | tail -c "$((length - 4))" |
		chroot "$root" $unpack
}

number_at()
{
	od -An -tu"$3" -j "$2" -N "$3" "$1" | tr -d ' '
}

# Removes half made and outdated root directories of the suite, except where a
# running VM holds the lock (vm_hold).
root_remove_others()
{
	local suite=$1 keep=$2
	local home

	for home in "$CACHE/roots/$suite"-*; do
		[ -d "$home" ] || continue
		if [ "$home" = "$keep" ] || flock -n "$home" true; then
			rm -rf --one-file-system "$home"
		fi
	done
}

# root_chroot ROOT BUILD COMMAND...: runs COMMAND in the root directory, with
# BUILD at /build, out of sight of everybody else. KERNEL_TREE, if set, is at
# /kernel.
root_chroot()
{
	local root=$1 build=$2

	shift 2
	# shellcheck disable=SC2016 # expanded by the inner shell
	unshare --mount --propagation private sh -euc '
		root=$1 build=$2
		shift 2
		mount --bind "$build" "$root/build"
		[ -z "${KERNEL_TREE-}" ] || mount --bind "$KERNEL_TREE" "$root/kernel"
		mount --bind /dev "$root/dev"
		mount -t proc proc "$root/proc"
		mount -t tmpfs tmpfs "$root/tmp"
		exec chroot "$root" env -i HOME=/build LC_ALL=C \
			PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
			"$@"' sh "$root" "$build" "$@" </dev/null
}

# initramfs_ensure ROOT RELEASE OUT: RELEASE is empty for a kernel that needs
# no modules to boot. Made again when one of the files that make it is newer.
initramfs_ensure()
{
	local root=$1 release=$2 out=$3

	{ [ "$out" -nt "$LIB/initramfs-init" ] && [ "$out" -nt "$LIB/rootfs.sh" ]; } ||
		with_lock "$CACHE/lock/initramfs" \
			initramfs_make "$root" "$release" "$out"
}

initramfs_make()
{
	local root=$1 release=$2 out=$3
	local dir

	dir=$(mktemp -d "$CACHE/initramfs.XXXXXX")
	mkdir -p "$dir"/{bin,dev,modules,newroot,proc}
	cp "$root/bin/busybox" "$dir/bin/"
	ln -s busybox "$dir/bin/sh"
	cp "$LIB/initramfs-init" "$dir/init"
	chmod 755 "$dir/init"
	: >"$dir/modules/order"
	[ -z "$release" ] || initramfs_modules "$root" "$release" "$dir/modules"
	root_chroot "$root" "$dir" sh -c \
		'cd /build && find . | busybox cpio -o -H newc' \
		>"$out.new" 2>/dev/null || die "$STATUS_SETUP" "cannot make $out"
	rm -rf "$dir"
	mv "$out.new" "$out"
}

# Copies the boot modules and what they depend on, uncompressed by the root
# directory's own tools, and writes the order in which to load them.
initramfs_modules()
{
	local root=$1 release=$2 dir=$3
	local module path name

	for module in $BOOT_MODULES; do
		root_chroot "$root" "$dir" modprobe --show-depends \
			--ignore-install -S "$release" "$module"
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' |
	while read -r path; do
		name=$(basename "$path" .xz)
		case $path in
		*.xz) chroot "$root" xz -dc "$path" >"$dir/$name" ;;
		*.zst) chroot "$root" zstd -qdc "$path" >"$dir/$name" ;;
		*) cp "$root/$path" "$dir/$name" ;;
		esac
		echo "$name" >>"$dir/order"
	done
}
