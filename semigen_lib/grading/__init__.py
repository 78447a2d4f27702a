"""Grading a class: student code runs in a sandbox and leaves evidence, which is scored outside.

``assignment`` knows what is asked, ``intake`` and ``sanitise`` what was handed in, ``sandbox`` and
``worker`` run it, ``tasks`` and ``evidence`` score what came out, ``grade`` does all of it for a
folder of submissions. Nothing in the rest of the library imports this package.

Shown in: book/instructor.md
"""
