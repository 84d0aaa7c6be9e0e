"""Where metastore stands beside what one would use in its place, and where its own time goes.

python -m benchmarks            compare with the peers, processes and growth included
python -m benchmarks.costs      what each part of an operation costs
python -m benchmarks.pragmas    page size, cache, memory map and checkpoint interval

Nothing here is part of the package, and no test times anything.
"""
