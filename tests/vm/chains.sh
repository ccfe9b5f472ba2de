# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# For tests of operations on chains: makes chains of all kinds, and compares.

# Options of the images, one kind of chain a line: NAME, FORMAT of the base, then
# for base sn1 sn2 sn3 active the options of qemu-img, "size=" among them, which is
# the last one; "compressed" as the first one stands for compressed clusters. Further
# options of the format join by one more line.
CHAIN_KINDS="
plain qcow2 size=24M size=24M size=24M size=24M size=24M
mixed qcow2 cluster_size=4k,size=24M cluster_size=2M,size=24M cluster_size=512,size=24M cluster_size=64k,size=24M cluster_size=16k,size=24M
shorter qcow2 size=24M cluster_size=4k,size=15001600 size=20M cluster_size=8k,size=17M size=24M
growing qcow2 size=9M cluster_size=32k,size=12M size=15M size=20M size=24M
old qcow2 compat=0.10,size=24M compat=0.10,size=24M compat=0.10,size=20M size=24M compat=0.10,size=24M
raw raw size=24M cluster_size=32k,size=24M size=24M cluster_size=4k,size=24M size=24M
subclusters qcow2 extended_l2=on,size=24M cluster_size=4k,size=24M extended_l2=on,cluster_size=128k,size=24M size=24M extended_l2=on,cluster_size=16k,size=24M
datafile qcow2 data_file=base.data,size=20M cluster_size=4k,size=24M extended_l2=on,data_file=sn2.data,size=24M size=24M cluster_size=32k,data_file=active.data,size=24M
compressed qcow2 compressed,compression_type=zstd,size=24M compressed,cluster_size=4k,size=24M size=24M compressed,cluster_size=16k,size=24M cluster_size=32k,size=24M
raw-short raw size=10000384 size=24M size=24M cluster_size=2M,size=24M size=24M
"

# kinds: the names of all kinds
kinds()
{
	awk 'NF { print $1 }' <<<"$CHAIN_KINDS"
}

# is_short KIND: does it have layers of different lengths? QEMU exposes there
# what a shorter layer hides.
is_short()
{
	local sizes

	sizes=$(grep "^$1 " <<<"$CHAIN_KINDS" | grep -oE '\<size=[^ ]+' | sort -u)
	[ "$(wc -l <<<"$sizes")" -gt 1 ]
}

# What is drawn is said, so that SEED= in the environment draws it again.
seed()
{
	local seed=${SEED-$RANDOM}

	echo "SEED=$seed"
	RANDOM=$seed
}

# random FROM TO: sets $REPLY to a multiple of 512. In a subshell it would follow
# from no seed.
random()
{
	REPLY=$((($1 + (RANDOM << 15 | RANDOM) % ($2 - $1)) / 512 * 512))
}

# fill IMAGE FORMAT SIZE PATTERN: writes, zeroes and discards here and there
fill()
{
	local commands=() i offset length

	for i in 1 2 3 4 5 6 7 8; do
		random 0 $(($3 - 512))
		offset=$REPLY
		random 512 400000
		length=$REPLY
		[ $((offset + length)) -le "$3" ] || length=$(($3 / 512 * 512 - offset))
		case $i in
		7) commands+=(-c "write -z $offset $length") ;;
		8) commands+=(-c "discard $offset $length") ;;
		*) commands+=(-c "write -P $(($4 + i)) $offset $length") ;;
		esac
	done
	qemu-io -f "$2" "${commands[@]}" "$1" >/dev/null
}

# compress IMAGE PATTERN: compressed clusters here and there in the first 24 MiB of a
# new image: QEMU writes them only where there is nothing
compress()
{
	local commands=() i offset

	for ((i = 0; i < 24; i++)); do
		offset=$(((i * 16 + RANDOM % 16) * 65536))
		commands+=(-c "write -c -P $(($2 + i)) $offset 64k")
	done
	qemu-io "${commands[@]}" "$1" | (! grep failed)
}

size_of()
{
	qemu-img info -U -f "$2" --output=json "$1" | jq '."virtual-size"'
}

# chain KIND: makes base sn1 sn2 sn3 active, without a suffix.
chain()
{
	local line image below='' format below_format words word size option i=0

	seed
	line=$(grep "^$1 " <<<"$CHAIN_KINDS")
	read -r _ format words <<<"$line"
	for image in base sn1 sn2 sn3 active; do
		word=${words%% *}
		words=${words#* }
		size=${word##*size=}
		option=${word%size=*}
		option=${option#compressed,}
		option=${option%,}
		# shellcheck disable=SC2086 # none, or one with its flag
		qemu-img create -q -f "$format" ${option:+-o $option} \
			${below:+-b $below -F $below_format} "$image" "$size"
		[[ $word != compressed,* ]] || compress "$image" $((i * 10 + 101))
		fill "$image" "$format" "$(size_of "$image" "$format")" $((i * 10 + 1))
		below=$image below_format=$format format=qcow2
		i=$((i + 1))
	done
}

# copy_chain TO FROM: copies the chain from one directory to another
copy_chain()
{
	local data

	mkdir -p "$1"
	(
		cd "$2" || exit
		cp --sparse=always base sn1 sn2 sn3 active "$OLDPWD/$1/"
		for data in *.data; do
			! test -e "$data" ||
				cp --sparse=always "$data" "$OLDPWD/$1/"
		done
	)
}

# contents IMAGE FORMAT: the checksum of what an image reads.
contents()
{
	qemu-img convert -U -f "$2" -O raw "$1" contents.raw 2>/dev/null ||
		qemu-img convert -f "$2" -O raw "$1" contents.raw
	sha256sum <contents.raw
	rm -f contents.raw
}

# device_contents NAME
device_contents()
{
	dd if="/dev/mapper/$1" bs=1M iflag=direct status=none | sha256sum
}

# check_images IMAGE...: qcow2 images must be sound.
check_images()
{
	local image

	for image; do
		qemu-img check -q -f qcow2 "$image" || {
			qemu-img check -f qcow2 "$image" || true
			die "qemu-img check $image"
		}
	done
}

# backing IMAGE: its link
backing()
{
	qemu-img info -U -f qcow2 --output=json "$1" |
		jq -r '."backing-filename" // "none"'
}

no_loops()
{
	[ -z "$(losetup -n -O BACK-FILE)" ]
}

# reader WANT: compares the device vm with a file, over and over until there is a
# file "stop"
reader()
{
	while [ ! -e stop ]; do
		dd if=/dev/mapper/vm bs=256K iflag=direct status=none |
			cmp - "$1" || touch bad
		echo >>reads
	done
}

# while_read WANT COMMAND...: what is read from the device stays meanwhile
while_read()
{
	local want=$1 pid

	shift
	rm -f stop reads
	reader "$want" &
	pid=$!
	# Whatever becomes of the command, the reader ends with it.
	trap 'touch stop; wait' EXIT
	"$@"
	touch stop
	wait "$pid"
	fails test -e bad
	echo "$* beside $(wc -l <reads) reads"
}

# all_gone: nothing is left, or will be in a moment
all_gone()
{
	wait_for 5 no_loops
	nothing_left
}
