# dream_batches.npz's arrays, of variancePartition, limma and edgeR: Rscript make_dream_batches_reference.R OUTDIR
# Simulated counts of 28 samples: 10 donors with 1 to 4 samples, crossed with 3 batches, a treatment and a covariate.
suppressMessages({library(variancePartition); library(edgeR); library(limma)})
out <- commandArgs(TRUE)[1]
set.seed(20)
donor <- factor(rep(paste0("D", 1:10), c(4, 4, 3, 3, 3, 3, 3, 2, 2, 1)))
n <- length(donor)
md <- data.frame(donor, batch = factor(sample(c("x", "y", "z"), n, TRUE)), arm = factor(sample(c("ctrl", "drug"), n, TRUE)), age = round(rnorm(n, 50, 10)), row.names = paste0("s", 1:n))
m <- 160
mean <- exp(rnorm(m, 3, 1.6))
log_rate <- log(mean) + matrix(rnorm(m * 10, 0, .4), m)[, as.integer(donor)] + matrix(rnorm(m * 3, 0, .3), m)[, as.integer(md$batch)]
log_rate[1:20, ] <- log_rate[1:20, ] + outer(rep(c(1, -1), 10), md$arm == "drug")
size <- exp(rnorm(n, 0, .5))
counts <- matrix(rnbinom(m * n, mu = t(t(exp(log_rate)) * size), size = 8), m, dimnames = list(paste0("g", 1:m), rownames(md)))
counts <- counts[rowSums(counts >= 3) >= n / 2, ]
put <- function(name, x) write.csv(x, file.path(out, paste0(name, ".csv")))
put("counts", counts); put("metadata", md)
d <- calcNormFactors(DGEList(counts))
formula <- ~ arm + age + (1 | donor) + (1 | batch)
v <- voomWithDreamWeights(d, formula, md, BPPARAM = SerialParam(), quiet = TRUE)
put("norm_factors", d$samples$norm.factors); put("E", v$E); w <- v$weights; dimnames(w) <- dimnames(v$E); put("weights", w)
fit <- dream(v, formula, md, BPPARAM = SerialParam(), quiet = TRUE)
eb <- eBayes(fit)
g <- rownames(fit$coefficients)
put("coef", fit$coefficients); put("se", fit$stdev.unscaled * fit$sigma); put("df", fit$df.residual); put("t", fit$t); put("p", fit$p.value)
put("eb_t", eb$t); put("eb_p", eb$p.value); put("prior", data.frame(df = eb$df.prior, s2 = eb$s2.prior))
put("rdf", if (is.null(fit$rdf)) NA else fit$rdf)
vl <- voom(d, model.matrix(~ arm + age, md)); put("limma_E", vl$E); put("limma_weights", vl$weights)
fl <- eBayes(lmFit(vl, model.matrix(~ arm + age, md))); put("limma_t", fl$t); put("limma_p", fl$p.value); put("limma_prior", data.frame(df = fl$df.prior, s2 = fl$s2.prior))
vp <- fitExtractVarPartModel(v, ~ age + (1 | arm) + (1 | donor) + (1 | batch), md, BPPARAM = SerialParam(), quiet = TRUE); put("varpart", as.matrix(vp))
cat(nrow(counts), "genes", n, "samples; version", as.character(packageVersion("variancePartition")), "\n"); print(attr(fit, "errors")); print(head(fit$df.residual))
