from diffcore.memory.modules.plan import plan as plan
