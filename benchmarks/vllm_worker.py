"""vLLM's side of `speed.py`, run by a Python that has vLLM: FOLDER CONTEXT SEQUENCES THREADS.

A line [prompts, new] on its input brings a line [seconds of reading the prompts, seconds of decoding] on its output.
"""

import json
import os
import sys
import time

folder, context, most, threads = sys.argv[1], *map(int, sys.argv[2:])
answers, sys.stdout = os.fdopen(os.dup(1), "w", buffering=1), sys.stderr
os.dup2(2, 1)  # vLLM writes its log there
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
    "VLLM_NO_USAGE_STATS": "1",
}

from vllm import LLM, SamplingParams  # noqa: E402  # reads these as it is imported

model = LLM(folder, dtype="bfloat16", max_model_len=context, max_num_seqs=most, enable_prefix_caching=False)


def timed(prompts: list[list[int]], count: int) -> float:
    """Seconds of writing `count` tokens after each."""
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    began = time.perf_counter()
    model.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return time.perf_counter() - began


for line in sys.stdin:
    prompts, new = json.loads(line)
    first = timed(prompts, 1)
    print(json.dumps([first, timed(prompts, new + 1) - first]), file=answers)
