"""Claims as data: a lab is a function with knobs that returns evidence for or against what is said."""
