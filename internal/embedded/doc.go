// Package embedded is the broker inside the single binary: franz-go's kfake on disk, behind the guards that make it safe to keep.
//
// It is one broker on 127.0.0.1 for evaluation, development and small installations, up to about 1 GiB of log, because opening
// reads the whole log into memory once. A record whose append was acknowledged survives a kill of the process at any moment.
// A power cut may lose records; [Config.Sync] makes that unlikely but not impossible, since kfake takes no notice of an fsync that
// fails and never syncs a directory. Where power cuts count, use a real Kafka.
//
// kfake calls itself a broker for tests, and what it does less well than a broker is kept out of reach here:
//
//   - Transactions are refused for every client. After a kill kfake may show half of a committed transaction, or an aborted one as
//     committed. Nothing of opstream uses them.
//   - Nothing expires and nothing is compacted. kfake's retention drops fresh records behind one with an old timestamp, and a kill in
//     the middle of its compaction loses the partition. Every topic is created with retention -1 and the delete policy, and the
//     cleaner never runs, so that a topic which a client makes is as safe.
//   - DeleteRecords leaves a partition its last record. kfake knows the end of a partition from its records alone: emptied, the
//     partition would begin again at offset 0 after a restart, and every position that anyone keeps would point at other records.
//   - Two processes cannot open one directory, and below a limit of free space appends are refused until there is room again,
//     before the disk is full and kfake answers with errors that producers give up on.
//
// After a kill, records that DeleteRecords removed may come back until they are removed again: whole segments are gone for good,
// the beginning of the first one that is left is not. Readers must not mind.
//
// The data directory:
//
//	DIR/lock      held while a broker has the directory open; its text is the holder's process id
//	DIR/VERSION   the number of the format, [FormatVersion]
//	DIR/log/      kfake's own files
//	DIR/damaged/  copies of segments that were damaged when the log was opened; nothing reads them
//
// A backup is a copy of DIR made while no broker has it open.
package embedded
