"""The online rewrite of one table, one module per step; `pipeline` puts the steps in order.

The protocol, and why it is right, in short:

1. *Capture.* From a moment T0 on, the key of every row that anybody writes is recorded in a change table, in the
   transaction that writes it.
2. *Copy.* The blocks that the heap had at T0 are copied into the shadow, in ranges, in parallel, each range in a short
   transaction with a snapshot of its own. Or, where the rows are to be sorted, ranges of values of a column, or all at
   once (`order`).
3. *Refresh.* In one snapshot S: every key recorded (as S sees the records) is deleted from the shadow, and the rows
   that the table holds for these keys in S are inserted. Then these records are deleted.

A key with no record visible in S has not been written since T0 as far as S can see: its row stands where it stood, so
one range copied it, and what it copied is what S sees. A key with a record is replaced by what S sees. So after every
refresh the shadow equals the table as of S. Records that S does not see stay for the next refresh. Under the final
exclusive lock nothing can be written: the last refresh makes them equal for good, and the files are exchanged.

Refreshing is idempotent and independent of order: that is why any of it can be cut into pieces, run in parallel,
killed, and done again.

A table without a key is another matter: there images of whole rows are recorded and counted, all of the copy is of one
snapshot (`baseline`), and a refresh adds up what the records say (`images`).
"""
