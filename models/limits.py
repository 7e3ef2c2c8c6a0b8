"""Bounds every number that is read from a file, far above the largest published model (blt-7b).

A number beyond its bound is refused where it is read, before anything is allocated, looped over or multiplied. The
bounds are not targets: a model that reaches several of them fits no machine.
"""

from __future__ import annotations

# Files, in bytes. blt-7b's manifest has 60 kB, quantized 300 kB; an index of shards of 1,000 tensors has 100 kB.
JSON_BYTES = 16 * 2**20
"""A JSON file: configuration, manifest, index."""
SAFETENSORS_HEADER_BYTES = 16 * 2**20
"""The header of a safetensors file."""
STORED_TENSORS = 2**16
"""Tensors of one file; the tallest model has 12,000."""
ZIP_DIRECTORY_BYTES = 2**22
"""The directory of a zip archive, of which torch.save and numpy.savez write about 100 bytes a tensor."""
PICKLE_BYTES = 2**20
"""The pickle in a ``.pth`` file: about 100 bytes a tensor. PyTorch's unpickler takes 5 microseconds a byte."""
FILE_BYTES = 2**44
"""Any file that a manifest or an archive lists."""
FILES = 4_096
"""Files of a bundle, of an engine folder, of an archive."""
SUMS_BYTES = 4 * 2**20
"""The SHA256SUMS of an archive: 4,096 lines of a digest and a name."""
SIGNATURE_BYTES = 2**16
"""A signature of ssh-keygen; the largest keys need 2 kB."""
KEYS_BYTES = 2**20
"""A file of public keys."""
NAME_CHARACTERS = 255
"""A name of a file, a tensor, a layer or a model."""
LIST_ITEMS = 1_024
"""A list in a configuration; the longest is that of the n-gram lengths."""

# Bundles and engines.
TENSORS = 4_096
"""Inputs, or outputs, of one graph: two caches of each layer, and a few more."""
RANK = 8
"""Dimensions of a tensor."""
SIZE = 2**31 - 1
"""One dimension of a tensor."""
OPSET = 1_000
COMPARISONS = 65_536
"""Comparisons with the eager model that a manifest lists."""
PROFILES = 64
"""Shape profiles of one engine."""
SM = 10_000
"""Compute capability, e.g. 89."""

# The geometry of a model; blt-7b has 4096, 32, 32, 11008, 512, 500_002, 8, 4, and blocks of 16.
DIM = 2**16
LAYERS = 256
"""Of one stack: the names and shapes of the tensors of four such stacks take two seconds."""
HEADS = 1_024
FFN_DIM = 2**19
WINDOW = 2**24
"""Positions."""
ROPE_THETA = 1e12
NORM_EPS = 1.0
THRESHOLD = 1e12
"""Nats; the entropy of 260 tokens is at most 5.6, and whoever wants no boundaries writes a large number."""
PATCH_LENGTH = 2**20
HASH_ROWS = 2**27
HASH_SIZES = 32
"""Number of n-gram lengths."""
NGRAM = 64
"""Tokens of the longest n-gram."""
CROSS_ATTN_K = 64
BLOCK_SIZE = 64
"""Bytes of a block: what every call, and the end of every buffer, has room for."""
DRAFT_RANK = 4_096
"""Rank of the low-rank matrices of a draft decoder; more than the width of most decoders."""
PARAMETERS = 10**13
"""Parameters of a whole model; blt-7b has 11e9."""

# A training recipe, and the state of a run.
SEED = 2**63 - 1
SECONDS = 1e12
STEP_TOKENS = 2**24
"""Tokens of a step; the shipped recipes have 8,192."""
BLOCKS = 2**16
"""Blocks, or stretches, per 256 tokens."""
FACTOR = 1e6
"""A learning rate, a weight of a loss, a limit of a gradient."""
STEPS = 2**53
SHARDS = 10**6
"""Shards of traces, samples of one, units of work."""

# What a user asks for.
TEXT_BYTES = 2**30
"""Prompt and new bytes of one sequence."""
THREADS = 1_024
"""Threads of one operator."""
THREADS_A_CORE = 8
"""The same, for each core that the process may use; more than one is never faster, and thousands never finish."""
SEQUENCES = 4_096
"""Sequences of one model at once."""
STOP_STRINGS = 1_024
STOP_BYTES = 2**20
"""All stop strings of a request together."""
GRAMMAR_BYTES = 2**17
"""A JSON schema, regular expression or grammar, as UTF-8."""
GRAMMAR_CHOICES = 1_024
"""Texts of ``choice``."""

# What a client of a server asks for.
CHOICES = 128
"""Texts of one request: prompts times choices of each."""
CLIENT_STOP_STRINGS = 4
"""Stop strings of a request, as OpenAI has it."""
MESSAGES = 4_096
"""Messages of a chat."""
CONTENT_PARTS = 1_024
"""Parts of one message."""
TOOLS = 128
"""Functions that a model may call, as OpenAI has it; calls of one message."""
LABEL_CHARACTERS = 512
"""A text that a client sends for its own use: a user, a key of a cache."""
LOGIT_BIAS = 100.0
"""What may be added to, or taken from, a logit."""
TEMPERATURE = 2.0
