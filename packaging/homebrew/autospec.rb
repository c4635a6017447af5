# A formula for a tap. `url`, `sha256` and `homepage` are filled in at a release (packaging/README.md); until then
# `brew install --HEAD` needs the repository's address in `head`. The resources are written by packaging/homebrew/resources.py.
# NumPy, SciPy and llama-server come from Homebrew itself. The extra mlx is left out: it needs more than this formula should build.
class Autospec < Formula
  include Language::Python::Virtualenv

  desc "Finds out on this machine whether speculative decoding pays"
  homepage "https://pypi.org/project/autospec-llm/"
  url "https://files.pythonhosted.org/packages/source/a/autospec-llm/autospec_llm-0.1.0.tar.gz"
  sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  license "MIT"

  depends_on "rust" => :build
  depends_on "libyaml"
  depends_on "llama.cpp"
  depends_on "numpy"
  depends_on "python@3.13"
  depends_on "scipy"

  # resources begin
  # resources end

  def install
    virtualenv_install_with_resources
    generate_completions_from_executable(bin/"autospec", "completion", shells: [:bash, :zsh, :fish])
  end

  def caveats
    <<~EOS
      The daemon is a service of its own, which `autospec service install` sets up; `brew services` does not know it.
    EOS
  end

  test do
    ENV["AUTOSPEC_HOME"] = testpath/"home"
    assert_match version.to_s, shell_output("#{bin}/autospec --version")
    assert_match "llama-server", shell_output("#{bin}/autospec doctor --json")
  end
end
