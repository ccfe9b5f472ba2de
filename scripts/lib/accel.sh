# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# KVM or TCG? A /dev/kvm that opens proves nothing: there are hosts where a
# guest on it hangs. So one VM is started to try, once for a host.

readonly KVM_PROBE_SECONDS=20

# accel_pick SUITE: prints kvm or tcg; SUITE is what to try with. DMQCOW2_ACCEL
# in the environment decides without a probe.
accel_pick()
{
	local suite=$1
	local answer

	if [ -n "${DMQCOW2_ACCEL-}" ]; then
		echo "$DMQCOW2_ACCEL"
		return
	fi
	if [ ! -w /dev/kvm ]; then
		echo tcg
		return
	fi
	answer=$CACHE/accel-$({ cat /proc/version; grep -m1 'model name' /proc/cpuinfo; } | hash_of)
	[ -s "$answer" ] ||
		with_lock "$CACHE/lock/accel" accel_probe "$suite" "$answer" >&2
	cat "$answer"
}

accel_probe()
{
	local suite=$1 answer=$2 accel=tcg

	[ ! -s "$answer" ] || return 0
	say "trying KVM (once, at most $KVM_PROBE_SECONDS s)"
	if [ "$(DMQCOW2_ACCEL=kvm "$PROJECT/scripts/vm" --suite "$suite" --no-build \
		--timeout "$KVM_PROBE_SECONDS" --log /dev/null --quiet-console \
		-- echo works 2>/dev/null)" = works ]; then
		accel=kvm
	fi
	say "using $accel"
	echo "$accel" >"$answer.new"
	mv "$answer.new" "$answer"
}
