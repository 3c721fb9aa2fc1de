# dream (variancePartition): all genes in one call, on one processor, without weights; df of its default for few samples,
# Satterthwaite's. What its result does not say (convergence) counts as converged.
here <- dirname(sub("--file=", "", grep("--file=", commandArgs(FALSE), value = TRUE)))
source(file.path(here, "harness.R"))

load_package <- function() suppressMessages(library(variancePartition))
prepare <- function(case) {
  model <<- update(formula_of(case), NULL ~ .)
  samples <<- case$table
  rownames(samples) <<- paste0("s", seq_len(nrow(samples)))
  components <<- paste0("g", seq_len(case$k))
}
fit <- function(y) {
  values <- t(as.matrix(y))
  dimnames(values) <- list(paste0("gene", seq_len(nrow(values))), rownames(samples))
  dream(values, model, samples, ddf = "Satterthwaite", BPPARAM = SerialParam(), quiet = TRUE)
}
estimates <- function(f) {
  variances <- as.matrix(attr(f, "varComp")[, c(components, "resid"), drop = FALSE])
  rbind(1, t(variances), t(f$coefficients), t(f$stdev.unscaled * f$sigma))
}
tests <- function(f) t(f$df.residual)

run("variancePartition", "Satterthwaite", at_once)
