#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# qcow2setup snapshot of a group: all devices at one point in time, file systems
# and guests frozen around it, and its failures and deaths.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# open_all NAME...: an image and a device each
open_all()
{
	local name

	for name; do
		qemu-img create -q -f qcow2 "$name.qcow2" 32M
		qcow2setup open "./$name.qcow2" "$name"
	done
}

# all_on LAYERS NAME...: LAYERS with the name before each
all_on()
{
	local suffixes=$1 name want suffix

	shift
	for name; do
		want=
		for suffix in $suffixes; do
			want+="${want:+ }$name$suffix"
		done
		equal "$(layers "$name")" "$want" "layers of $name"
		equal "$(dmsetup info -c --noheadings -o tables_loaded,suspended "$name")" \
			"Live:Active" "state of $name"
	done
}

# A writer that counts: in a, then, once that is there, in b. No snapshot may have
# in b what a does not have.
count_up()
{
	python3 - "$@" <<-'EOS'
	import mmap, os, sys
	buf = mmap.mmap(-1, 4096)
	fds = [os.open(f"/dev/mapper/{n}", os.O_RDWR | os.O_DIRECT)
	       for n in sys.argv[1:]]
	number = 0
	while not os.path.exists("stop"):
	    number += 1
	    buf[:8] = number.to_bytes(8, "big")
	    for fd in fds:
	        os.pwrite(fd, buf, 0)
	EOS
}

counter_in()
{
	qcow2setup open "$1" one --read-only
	dd if=/dev/mapper/one bs=8 count=1 status=none | od -An -tu8 --endian=big
	qcow2setup close one
}

test_one_point_in_time()
{
	open_all a b c
	count_up a b c &
	writer=$!
	for i in 1 2 3 4 5; do
		sleep 0.5
		qcow2setup snapshot "a=a$i" "b=b$i" "c=c$i"
	done
	touch stop
	wait "$writer"
	all_on "5 4 3 2 1 .qcow2" a b c
	for i in a b c; do
		qcow2setup close "$i"
	done
	for i in .qcow2 1 2 3 4; do
		a=$(counter_in "./a$i")
		b=$(counter_in "./b$i")
		c=$(counter_in "./c$i")
		echo "$i: $a $b $c"
		[ "$a" -gt 0 ] && [ "$b" -ge "$c" ] && [ "$a" -ge "$b" ] &&
			[ $((a - c)) -le 1 ]
		qemu-img check -q "a$i"
		qemu-img check -q "c$i"
	done
	nothing_left
}

test_json_and_names()
{
	open_all a b=c
	qcow2setup snapshot a=x b=c=y --json >out
	equal "$(jq -r '.[] | .name + " " + .overlay' out | xargs)" \
		"a $PWD/x b=c $PWD/y" "result"
	qcow2setup snapshot b=c z
	equal "$(layers b=c)" "z y b=c.qcow2" "layers"
	qcow2setup snapshot a=one
	equal "$(layers a)" "one x a.qcow2" "layers"
	qcow2setup close a
	qcow2setup close b=c
	nothing_left
}

test_refused()
{
	open_all a b
	exits 1 'named twice' qcow2setup snapshot a=x a=y
	exits 1 'named twice' qcow2setup snapshot a=x b=x
	exits 1 'is not NAME=OVERLAY' qcow2setup snapshot a=x none=y
	exits 1 'is not NAME=OVERLAY' qcow2setup snapshot a=x b y
	exits 5 'open for writing' qcow2setup snapshot a=x b=a.qcow2
	exits 4 'No such file' qcow2setup snapshot a=x b=none/y
	mkdir plain
	exits 1 'not a mount point' \
		qcow2setup snapshot a=x b=y --fsfreeze "$PWD/plain"
	exits 4 'No such file' qcow2setup snapshot a=x b=y --fsfreeze none
	exits 1 'it holds' \
		qcow2setup snapshot a=/run/x b=/run/y --fsfreeze /scratch
	exits 1 'has to go on in' \
		qcow2setup snapshot a=x b=y --fsfreeze /scratch
	exits 4 'does not answer' qcow2setup snapshot a=x --qga none
	all_on .qcow2 a b
	fails test -e x
	dmsetup suspend b
	exits 5 'suspended' qcow2setup snapshot a=x b=y
	dmsetup resume b
	all_on .qcow2 a b
	# Images of one on a file system on the other
	mkfs.ext4 -q /dev/mapper/a
	mkdir mnt
	mount /dev/mapper/a mnt
	qemu-img create -q -f qcow2 mnt/inner.qcow2 8M
	qcow2setup open mnt/inner.qcow2 inner
	exits 1 'cannot stand still together' \
		qcow2setup snapshot a=x inner=y
	qcow2setup close inner
	umount mnt
	qcow2setup close a
	qcow2setup close b
	nothing_left
}

# The kernel refuses the last table: clusters smaller than a block.
test_failure_leaves_nothing()
{
	scsi_disk sector_size=4096 dev_size_mb=64
	open_all a b
	before=$(dmsetup table)
	qemu-img create -q -f qcow2 -o cluster_size=512 -u -b "$PWD/b.qcow2" \
		-F qcow2 "$disk" 32M
	qemu-img create -q -f qcow2 -u -b a.qcow2 -F qcow2 x 32M
	fails qcow2setup snapshot a=x "b=$disk" --existing
	equal "$(dmsetup table)" "$before" "tables"
	all_on .qcow2 a b
	equal "$(find /run/qcow2setup -name journal)" "" "journal"
	qcow2setup snapshot a=x --existing
	qcow2setup close a
	qcow2setup close b
	nothing_left
	rmmod scsi_debug
}

test_fsfreeze()
{
	open_all a b
	mkfs.ext4 -q /dev/mapper/a
	# A file system that device-mapper does not know to be on b
	dmsetup create part --table "0 61440 linear /dev/mapper/b 2048"
	mkfs.ext4 -q /dev/mapper/part
	mkdir ma mb
	mount /dev/mapper/a ma
	mount /dev/mapper/part mb
	for i in ma mb; do
		(while [ ! -e stop ]; do
			head -c 50000 /dev/urandom >"$i/f$((RANDOM % 9))"
		done) &
	done
	for i in 1 2 3; do
		sleep 0.5
		qcow2setup snapshot "a=a$i" "b=b$i" --fsfreeze "$PWD/ma" \
			--fsfreeze "$PWD/mb"
	done
	touch stop
	wait
	touch ma/thawed mb/thawed
	umount ma mb
	dmsetup remove part
	qcow2setup close a
	qcow2setup close b
	for i in 1 2; do
		qcow2setup open "./a$i" one --read-only
		e2fsck -fn /dev/mapper/one
		qcow2setup close one
		qcow2setup open "./b$i" one --read-only
		dmsetup create part --readonly \
			--table "0 61440 linear /dev/mapper/one 2048"
		e2fsck -fn /dev/mapper/part
		dmsetup remove part
		qcow2setup close one
	done
	nothing_left
}

# udev is waited for when everything goes on: here it never answers.
test_udev_that_is_slow()
{
	open_all a
	disk_to_freeze
	mkdir -p /run/udev
	touch /run/udev/control
	env -u DM_DISABLE_UDEV qcow2setup snapshot a=a1 --fsfreeze "$PWD/mnt" &
	main=$!
	wait_for 30 has_layers a 2
	timeout 10 touch mnt/thawed || die "still frozen"
	kill -0 "$main"
	DM_DISABLE_UDEV='' dmsetup udevcomplete_all -y
	wait "$main"
	rm /run/udev/control
	all_on "1 .qcow2" a
	umount mnt
	qcow2setup close a
	nothing_left
}

# Others have all the semaphores that libdevmapper waits for udev with: no device
# stands still for that.
test_no_semaphores()
{
	local before

	open_all a b
	before=$(</proc/sys/kernel/sem)
	mkdir -p /run/udev
	touch /run/udev/control
	echo "250 32000 32 0" >/proc/sys/kernel/sem
	env -u DM_DISABLE_UDEV qcow2setup snapshot a=a1 b=b1
	rm /run/udev/control
	echo "$before" >/proc/sys/kernel/sem
	all_on "1 .qcow2" a b
	qcow2setup close a
	qcow2setup close b
	nothing_left
}

# agent SOCKET LOG [MISTAKE [ANSWER [SECONDS]]]: answers as qemu-ga does, and notes what it is told
agent()
{
	python3 - "$@" <<-'EOS' &
	import json, os, socket, sys, time
	server = socket.socket(socket.AF_UNIX)
	server.bind(sys.argv[1])
	server.listen()
	while True:
	    peer, _ = server.accept()
	    for line in peer.makefile("rb"):
	        request = json.loads(line.lstrip(b"\xff"))
	        name = request["execute"]
	        if name == "guest-sync-delimited":
	            number = request["arguments"]["id"]
	            # What an earlier user left in the channel comes first.
	            peer.sendall(b'{"return": 7}\n\xff' +
	                         json.dumps({"return": number}).encode() + b"\n")
	            continue
	        with open(sys.argv[2], "a") as log:
	            print(name, file=log)
	        if sys.argv[3:] and sys.argv[3] in name:
	            time.sleep(int(sys.argv[5]) if sys.argv[5:] else 0)
	            peer.sendall((sys.argv[4:] or ['{"error": {"desc": "no"}}'])
	                         [0].encode() + b"\n")
	        else:
	            peer.sendall(b'{"return": 1}\n')
	EOS
	wait_for 10 test -S "$1"
}

test_guest_agent()
{
	open_all a b
	agent s1 log1
	one=$!
	agent s2 log2
	two=$!
	qcow2setup snapshot a=a1 b=b1 --qga s1 --qga s2
	equal "$(xargs <log1)" "guest-fsfreeze-freeze guest-fsfreeze-thaw" "agent"
	equal "$(xargs <log2)" "guest-fsfreeze-freeze guest-fsfreeze-thaw" "agent"
	all_on "1 .qcow2" a b
	kill "$two"
	rm log1 s2
	# Thawed also where the snapshot, or the next agent, fails
	agent s2 log3 freeze
	two=$!
	exits 4 'Cannot freeze s2' \
		qcow2setup snapshot a=a2 b=b2 --qga s1 --qga s2
	matches "$(xargs <log1)" "guest-fsfreeze-freeze guest-fsfreeze-thaw" \
		"agent"
	all_on "1 .qcow2" a b
	fails test -e a2
	kill "$one" "$two"
	qcow2setup close a
	qcow2setup close b
	nothing_left
}

# Who cannot be understood may have frozen: it is told to thaw.
test_agent_that_answers_nonsense()
{
	open_all a
	for answer in nonsense '{"event": "x"}' '[]' '{"return": {"a"'; do
		agent s1 log1 -freeze "$answer"
		one=$!
		exits 4 'Cannot freeze s1' qcow2setup snapshot a=a1 --qga s1
		kill "$one"
		equal "$(xargs <log1)" \
			"guest-fsfreeze-freeze guest-fsfreeze-thaw" "$answer"
		rm s1 log1
	done
	all_on .qcow2 a
	qcow2setup close a
	nothing_left
}

# The snapshot is there, whatever fails then: the device that it is on stays locked.
test_locks_when_thawing_fails()
{
	modprobe brd rd_nr=1 rd_size=40960
	open_all a
	agent s1 log1 thaw
	one=$!
	exits 4 'Cannot thaw s1' qcow2setup snapshot a=/dev/ram0 --qga s1
	kill "$one"
	equal "$(layers a)" "ram0 a.qcow2" "layers"
	equal "$(locked /dev/ram0)" "100-101 103-103 201-201 203-203" "locks"
	qcow2setup list
	exits 1 'lock' qemu-io -f qcow2 -c 'write 0 512' /dev/ram0
	qcow2setup close a
	nothing_left
	rmmod brd
}

# A socket whose queue is full, since nobody accepts
test_agent_that_does_not_accept()
{
	open_all a
	python3 - <<-'EOS' &
	import socket, time
	server = socket.socket(socket.AF_UNIX)
	server.bind("full")
	server.listen(0)
	peers = []
	for _ in range(8):
	    peer = socket.socket(socket.AF_UNIX)
	    peer.setblocking(False)
	    try:
	        peer.connect("full")
	    except BlockingIOError:
	        break
	    peers.append(peer)
	open("ready", "w")
	time.sleep(300)
	EOS
	server=$!
	wait_for 30 test -e ready
	exits 4 'does not answer' timeout 60 qcow2setup snapshot a=x --qga full
	kill "$server"
	all_on .qcow2 a
	qcow2setup close a
	nothing_left
}

# What others have frozen they thaw, too.
test_frozen_by_others()
{
	open_all a
	disk_to_freeze
	agent s1 log1
	one=$!
	agent s2 log2 freeze
	two=$!
	fsfreeze -f mnt
	exits 5 'Cannot freeze .*mnt' \
		qcow2setup snapshot a=a1 --fsfreeze "$PWD/mnt" --qga s1
	fails fsfreeze -f mnt
	fsfreeze -u mnt
	equal "$(xargs <log1)" "guest-fsfreeze-freeze guest-fsfreeze-thaw" "agent"
	exits 4 'Cannot freeze s2' qcow2setup snapshot a=a1 --qga s2
	equal "$(xargs <log2)" "guest-fsfreeze-freeze" "agent that refuses"
	kill "$one" "$two"
	all_on .qcow2 a
	umount mnt
	qcow2setup close a
	nothing_left
}

# When a service is stopped, or the machine, all its processes are told to end: what
# was begun goes on, and no guest stays frozen.
test_terminated()
{
	open_all a
	agent s1 log1 -freeze '{"return": 1}' 3
	one=$!
	qcow2setup snapshot a=a1 --qga s1 &
	main=$!
	wait_for 30 grep -q freeze log1
	pkill -TERM -x qcow2setup
	fails wait "$main"
	wait_for 30 grep -q thaw log1
	wait_for 30 has_layers a 2
	kill "$one"
	qcow2setup list
	all_on "1 .qcow2" a
	qcow2setup close a
	nothing_left
}

# Both processes, or one, killed at any time: nobody stays suspended or frozen,
# and all are on the same side.
test_killed()
{
	open_all a b c
	n=0
	for delay in 0.05 0.1 0.15 0.2 0.25 0.3 0.4 0.5 0.6; do
		n=$((n + 1))
		before="$(layers a) $(layers b) $(layers c)"
		setsid qcow2setup snapshot "a=a$n" "b=b$n" "c=c$n" >/dev/null 2>&1 &
		main=$!
		sleep "$delay"
		if [ $((n % 2)) = 0 ]; then
			pkill -KILL -x qcow2setup || true
		else
			kill -KILL "$main" 2>/dev/null || true
		fi
		wait "$main" || true
		# Any command that looks puts it in order.
		qcow2setup list >/dev/null
		for i in a b c; do
			equal "$(dmsetup info -c --noheadings \
				-o tables_loaded,suspended "$i")" "Live:Active" \
				"state of $i"
		done
		count=$(for i in a b c; do
			qcow2setup status "$i" --json | jq '.layers | length'
		done | sort -u | wc -l)
		equal "$count" 1 "lengths of the chains"
		echo "$delay: was $before, is $(layers a) $(layers b) $(layers c)"
		dd if=/dev/zero of=/dev/mapper/b bs=64k count=1 oflag=direct \
			status=none
	done
	for i in a b c; do
		qcow2setup close "$i"
	done
	nothing_left
}

main "$@"
