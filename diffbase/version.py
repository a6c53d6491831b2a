"""The version of all packages of the toolkit: the only place where it is written."""

VERSION = "0.1.0"
