# SPDX-License-Identifier: GPL-2.0-only
#
# make            build the module and qcow2setup
# make demo       see it work, in a virtual machine
# make check      run the tests, in virtual machines
# make fuzz       fuzz what decodes images, for MINUTES=30
# make bench      measure it beside what does the same, in virtual machines
# make install    install both (DESTDIR, PREFIX)
#
# KDIR=DIR  kernel build directory (default: the running kernel's, else the
#           newest headers installed)
# W=1 C=1   more warnings, sparse

KDIR ?= $(shell scripts/find-kdir)
PREFIX ?= /usr
export PREFIX

.PHONY: all module userspace install clean check check-long unit fuzz bench demo

all: module userspace

module:
	@test -n "$(KDIR)" || { echo "no kernel headers found: install them (linux-headers-amd64) or give KDIR=" >&2; exit 1; }
	$(MAKE) -C $(KDIR) M=$(CURDIR) FAULTS=$(FAULTS) modules

userspace:
	$(MAKE) -C userspace

install: all
	$(MAKE) -C $(KDIR) M=$(CURDIR) \
		$(if $(DESTDIR),INSTALL_MOD_PATH=$(abspath $(DESTDIR))) \
		modules_install
	$(MAKE) -C userspace install \
		$(if $(DESTDIR),DESTDIR=$(abspath $(DESTDIR)))

clean:
	@if test -n "$(KDIR)"; then $(MAKE) -C $(KDIR) M=$(CURDIR) clean; fi
	$(MAKE) -C userspace clean
	$(MAKE) -C tests clean

unit:
	$(MAKE) -C tests unit

fuzz:
	tests/fuzz/run $(MINUTES)

check:
	tests/run-check

check-long:
	tests/run-check --long

bench:
	tests/bench/run

demo:
	scripts/demo
