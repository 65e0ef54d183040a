"""A core's memory system: on-chip buffers, AXI masters, and the LD and ST units between them.

`buffers` hold F and A, `weight_fifo` what a channel prefetches, `read_master` and `write_master`
speak AXI4 to one channel, `load` and `store` execute the instructions of LD and ST.
"""
