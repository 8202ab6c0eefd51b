"""The nonlinear regression problems of NIST's Statistical Reference Datasets, fitted with served derivatives."""
