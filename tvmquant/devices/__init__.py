"""Where code runs: one small interface, and a file for each kind of device.

What a deployed library needs of it imports TVM's runtime and numpy alone.
"""
