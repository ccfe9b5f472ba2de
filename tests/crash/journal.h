/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a workload did, in the order in which it did it: an array of records.
 *
 * One lock orders the records. J_SUBMIT stands before the request is made,
 * J_COMPLETE after it has ended; operations that share a sector never overlap
 * in time, and the later one has the larger number. Operations count from 1;
 * "operation 0" is what the image held at the start.
 *
 * The log of dm-log-writes is tied to the journal by marks, whose text is
 *
 *	D:<durable>:<now>	a flush has ended that began when the journal held
 *				<durable> records: every operation whose
 *				J_COMPLETE is among these is durable
 *	U:<op>:<now>		a FUA write has ended: it is durable
 *	S:<now>			the internal snapshots are about to be edited from
 *				outside: crash points up to the next E are not the
 *				module's
 *	E:<begin>:<now>		edited: record <begin> says how, and every operation
 *				that ended before it is durable
 *
 * where <now> is the length of the journal just before the mark was made. Marks
 * are made one after the other, so <now> of a mark is later than the mark before
 * it in the log.
 */
#ifndef CRASH_JOURNAL_H
#define CRASH_JOURNAL_H

#include <stdint.h>

enum journal_type {
	J_SUBMIT = 1,
	J_COMPLETE,
	J_SNAPSHOT_BEGIN,	/* @op is the number of the snapshot, named s<op> */
	J_SNAPSHOT_END,
	J_DELETE_BEGIN,
	J_DELETE_END,
};

enum op_kind {
	OP_WRITE = 1,
	OP_ZERO,		/* reads as zeroes afterwards */
	OP_DISCARD,		/* zeroes, or what was there, sector by sector */
	OP_READ,		/* only in the workload */
	OP_FLUSH,
};

#define OP_FUA	1U

struct journal_record {
	uint32_t type;
	uint32_t op;
	uint64_t sector;
	uint32_t count;		/* sectors */
	uint16_t kind;
	uint16_t flags;
};

#endif /* CRASH_JOURNAL_H */
