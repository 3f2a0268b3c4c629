"""What ``minquant bench`` measures: minquant's kernels beside the libraries', in turn, against the processor's limits.

Importing this needs NumPy alone; a library is imported when it is measured.
"""
