"""Makes tests a package, which takes precedence over an installed package of the same name."""
