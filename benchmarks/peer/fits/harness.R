# Times an R package on one case, as harness.py does: Rscript fit_PEER.R CASE OUTPUT SECONDS GENES
# The adapter defines load_package(), prepare(case), fit(y), estimates(f) and tests(f), and calls run().

args <- commandArgs(TRUE)
now <- function() as.numeric(Sys.time())
clock <- function(expression) {
  start <- now()
  force(expression)
  now() - start
}

read_case <- function(folder, genes) {
  meta <- read.dcf(file.path(folder, "meta.dcf"))[1, ]
  n <- as.integer(meta["cells"])
  p <- as.integer(meta["fixed"])
  k <- as.integer(meta["components"])
  genes <- min(genes, as.integer(meta["genes"]))
  numbers <- function(file, what, count, ...) readBin(file.path(folder, file), what, count, endian = "little", ...)
  Y <- matrix(numbers("Y.f64", "double", n * genes), n)
  X <- matrix(numbers("X.f64", "double", n * p), n)
  groups <- matrix(numbers("groups.i4", "integer", n * k, size = 4), n)
  table <- data.frame(y = Y[, 1], X[, -1])
  names(table) <- c("y", paste0("x", seq_len(p - 1)))
  for (i in seq_len(k)) table[[paste0("g", i)]] <- factor(groups[, i])
  list(Y = Y, X = X, groups = groups, table = table, genes = genes, p = p, k = k)
}

resident <- function(reset = FALSE) {
  lines <- tryCatch(readLines("/proc/self/status"), error = function(e) NULL)
  if (is.null(lines)) return(NA)
  if (reset) try(cat("5", file = "/proc/self/clear_refs"), silent = TRUE)
  line <- grep(if (reset) "^VmRSS" else "^VmHWM", lines, value = TRUE)
  1024 * as.numeric(gsub("[^0-9]", "", line))
}

formula_of <- function(case) {
  random <- paste0("(1 | g", seq_len(case$k), ")")
  as.formula(paste("y ~", paste(c("1", setdiff(names(case$table), c("y", paste0("g", seq_len(case$k)))), random),
                                collapse = " + ")))
}

one_by_one <- function(case, seconds) {
  width <- 2 + case$k + 3 * case$p
  values <- matrix(NA_real_, width, case$genes)
  spent <- c(0, 0)
  errors <- character()
  gene <- 0
  while (gene < case$genes && sum(spent) < seconds) {
    gene <- gene + 1
    start <- now()
    fitted <- NULL
    error <- tryCatch({
      f <- suppressMessages(suppressWarnings(fit(case$Y[, gene])))
      values[seq_len(width - case$p), gene] <- estimates(f)
      fitted <- now()
      values[width - case$p + seq_len(case$p), gene] <- suppressMessages(suppressWarnings(tests(f)))
      NULL
    }, error = conditionMessage)
    if (is.null(fitted)) fitted <- now()
    spent <- spent + c(fitted - start, now() - fitted)
    errors <- c(errors, error)
  }
  list(values = values[, seq_len(gene), drop = FALSE], spent = spent, errors = errors)
}

# All genes in one call, or as many as calls of fewer say there is time for
at_once <- function(case, seconds) {
  genes <- min(4, case$genes)
  repeat {
    start <- now()
    f <- fit(case$Y[, seq_len(genes), drop = FALSE])
    values <- estimates(f)
    fitted <- now()
    values <- rbind(values, tests(f))
    spent <- c(fitted - start, now() - fitted)
    if (genes == case$genes || 2 * sum(spent) > seconds) break
    genes <- min(case$genes, 8 * genes, ceiling(genes * seconds / sum(spent)))
  }
  list(values = values, spent = spent, errors = character())
}

run <- function(package, df, measure = one_by_one) {
  output <- args[2]
  case <- read_case(args[1], as.integer(args[4]))
  importing <- clock(load_package())
  before <- resident(reset = TRUE)
  preparing <- clock(prepare(case))
  first <- clock(try(estimates(f <- fit(case$Y[, 1])), silent = TRUE))
  try(tests(f), silent = TRUE)  # what it loads is not timed later
  found <- measure(case, as.numeric(args[3]))
  writeBin(as.vector(found$values), paste0(output, ".f64"), endian = "little")
  number <- function(x) if (is.na(x)) "null" else format(x, digits = 15)
  text <- function(x) sprintf("\"%s\"", gsub("[^ -~]|[\"\\\\]", " ", x))
  counts <- table(found$errors)
  fields <- c(
    seconds_import = number(importing), seconds_prepare = number(preparing), seconds_first = number(first),
    genes = ncol(found$values), seconds_fit = number(found$spent[1]), seconds_tests = number(found$spent[2]),
    peak_bytes = number(resident() - before), version = text(as.character(packageVersion(package))), df = text(df),
    errors = sprintf("{%s}", paste(sprintf("%s: %d", text(names(counts)), as.integer(counts)), collapse = ", "))
  )
  writeLines(sprintf("{%s}", paste(sprintf("\"%s\": %s", names(fields), fields), collapse = ", ")),
             paste0(output, ".json"))
}
