# lmerTest: lmer() and summary() per gene. refit() would be faster, but the df of what as_lmerModLmerTest() makes of a
# refitted model are those of the first gene's deviance: 20511 where they are 38.
here <- dirname(sub("--file=", "", grep("--file=", commandArgs(FALSE), value = TRUE)))
source(file.path(here, "harness.R"))

load_package <- function() suppressMessages(library(lmerTest))
prepare <- function(case) {
  cells <<- case$table
  model <<- formula_of(case)
}
fit <- function(y) {
  cells$y <<- y
  lmer(model, cells)
}
estimates <- function(f) {
  components <- as.data.frame(lme4::VarCorr(f))
  k <- nrow(components) - 1
  order <- match(paste0("g", seq_len(k)), components$grp)
  c(f@optinfo$conv$opt == 0, components$vcov[c(order, k + 1)], lme4::fixef(f), sqrt(diag(as.matrix(vcov(f)))))
}
tests <- function(f) summary(f)$coefficients[, "df"]

run("lmerTest", "Satterthwaite")
