"""A small ray caster, for scenes whose ground truth is exact."""
