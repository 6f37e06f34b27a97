"""How XLA compiles in tests: programs that run for milliseconds are not worth long."""

from importlib.metadata import version

FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):  # Half the time; later versions lack it.
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
