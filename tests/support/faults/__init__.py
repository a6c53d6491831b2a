"""Faults of a machine, done to a command: failing calls, full disks, missing things.

    faults = Faults(tmp_path)
    env = faults.env(fail("read", errno.EIO, "train-000001.tar", after=3, times=2), clock(3600))
    subprocess.run(command, env=os.environ | env)

``kit`` has the faults. Those of calls are a shim in C (``shim.c``, which says what a rule is), built once by
the machine's ``cc`` and loaded by LD_PRELOAD into whatever is run: Python, torch and safetensors alike.
``why_not`` says why a machine cannot do it; some others need root.
"""
