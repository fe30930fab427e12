"""The graphs between import and kernels: own operators, how they are walked and rewritten."""
