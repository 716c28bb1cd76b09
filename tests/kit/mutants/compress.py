"""Mistakes in number formats and quantizers."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

UNIFORM, NORMAL = "cutaway.compress.uniform:", "cutaway.compress.normal_float:"
FLOATS, SIMULATED = "cutaway.compress.floats:FloatFormat.", "cutaway.compress.simulated:"

# fmt: off
MUTANTS = mutants(
    ("uniform: a scale for 128 steps, where the codes end at 127", "uniform integers",
        edit(UNIFORM + "quantize", "top = 2 ** (bits - 1) - 1", "top = 2 ** (bits - 1)")),
    ("uniform: the scale of the largest number, not of the largest size", "uniform integers",
        edit(UNIFORM + "quantize", "x_SE.abs().amax(1, keepdim=True)", "x_SE.amax(1, keepdim=True)")),
    ("uniform: a range that leaves out 0", "uniform integers",
        edit(UNIFORM + "quantize", "x_SE.amin(1, keepdim=True).clamp(max=0)", "x_SE.amin(1, keepdim=True)")),
    ("uniform: the zero of the other sign", "uniform integers",
        edit(UNIFORM + "quantize", "(-least_S1 / scale_S1).round()", "(least_S1 / scale_S1).round()")),
    ("uniform: cut off instead of rounded", "uniform integers",
        edit(UNIFORM + "quantize", "(x_SE * (1 / scale_S1)).round().clamp(-top, top)", "(x_SE * (1 / scale_S1)).trunc().clamp(-top, top)")),
    ("uniform: halves away from zero", "uniform worked",
        edit(UNIFORM + "quantize", "(x_SE * (1 / scale_S1)).round().clamp(-top, top)",
             "((x_SE * (1 / scale_S1)).abs() + 0.5).floor().copysign(x_SE).clamp(-top, top)")),
    ("uniform: columns share a scale, not rows", "uniform integers",
        edit(UNIFORM + "shared", "return x.reshape(-1, width)", "return x.reshape(width, -1)")),
    ("uniform: back without the zero", "uniform integers",
        edit(UNIFORM + "Quantized.numbers.fget", "(self.codes_SE - self.zero_S1)", "self.codes_SE")),
    ("uniform: a zero-point quantizer with a code too few", "uniform decibels",
        edit(UNIFORM + "quantize", "top = 2 ** bits - 1", "top = 2 ** bits - 2")),
    ("uniform: decibels of amplitudes", "uniform decibels",
        edit(UNIFORM + "decibels", "10 * math.log10", "20 * math.log10")),
    ("uniform: a group's scale shared by all bits", "normal float sizes",
        edit(UNIFORM + "stored_bits", "scale / group", "scale / group / bits")),
    ("nf4: as many quantiles below 0 as above", "normal float",
        edit(NORMAL + "nf4", "for n in (8, 7)", "for n in (8, 8)")),
    ("nf4: rounded down, not to the nearest", "normal float",
        edit(NORMAL + "_nearest", "(values[:-1] + values[1:]) / 2", "values[1:]")),
    ("nf4: the second code above the first", "normal float",
        edit(NORMAL + "NormalFloat.packed.fget", "self.codes_BE[:, 0::2] << 4 | self.codes_BE[:, 1::2]",
             "self.codes_BE[:, 1::2] << 4 | self.codes_BE[:, 0::2]")),
    ("nf4: scales doubled without taking off their mean", "normal float",
        edit(NORMAL + "quantize_scales", "scale_B - offset", "scale_B")),
    ("nf4: the mean not added again", "normal float",
        edit(NORMAL + "Doubled.numbers.fget", " + self.offset", "")),
    ("nf4: one scale of scales for all", "normal float",
        edit(NORMAL + "quantize_scales", "_padded(scale_B - offset, SCALES)", "_padded(scale_B - offset, len(scale_B))")),
    ("nf4: the decades of dynamic numbers upside down", "normal float",
        edit(NORMAL + "dynamic", "2 ** decade + 1", "2 ** (DECADES - 1 - decade) + 1")),
    ("nf4: the scale of scales counted for every one", "normal float sizes",
        edit(NORMAL + "bits", "32 / (block * SCALES)", "32 / block")),
    ("floats: an exponent kept for infinity where there is none", "float formats",
        edit(FLOATS + "largest.fget", "self.last == 'ieee'", "True")),
    ("floats: NaN's number counted", "float formats",
        edit(FLOATS + "largest.fget", "(1 + (self.last == 'nan'))", "1")),
    ("floats: no subnormal numbers", "float formats",
        edit(FLOATS + "round", ".clamp(min=2 - self.bias)", "")),
    ("floats: steps of twice the size", "float formats",
        edit(FLOATS + "round", "exponent - self.mantissa", "exponent - self.mantissa + 1")),
    ("floats: a whole step of error", "float formats",
        edit(FLOATS + "roundoff.fget", "self.mantissa + 1", "self.mantissa")),
    ("simulated: outputs rounded, not inputs", "simulated formats",
        edit(SIMULATED + "with_inputs", "module.register_forward_pre_hook(lambda _, inputs: (rounding(inputs[0]).to(inputs[0].dtype), *inputs[1:]))",
             "module.register_forward_hook(lambda _, inputs, out: rounding(out))")),
    ("simulated: the original is changed", "simulated formats",
        edit(SIMULATED + "with_weights", "twin = _twin(model)", "twin = model")),
)
